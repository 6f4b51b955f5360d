//! The requests: the documents' API for reads and writes, the record API for what needs it.

use std::io::Write as _;

use crate::keys;
use crate::value::{Named, Values};

/// Writes requests to one server.
#[derive(Clone, Debug)]
pub struct Api {
    /// What every request carries: `Host`, and headers that the user asked for.
    headers: Vec<u8>,
}

impl Api {
    /// Requests to this host, with these headers on each.
    pub fn new(host: &str, extra: &[(String, String)]) -> Self {
        let mut headers = format!(" HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
        for (name, value) in extra {
            headers.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        Self { headers }
    }

    /// `GET /read/{key}`, at least as new as `token` when that is not empty.
    pub fn read(&self, into: &mut Vec<u8>, key: u32, token: &[u8]) {
        into.clear();
        into.extend_from_slice(b"GET /read/");
        keys::write(into, key);
        self.end_without_body(into, token);
    }

    /// `GET /v1/records`: at most `limit` of the key's neighbours.
    pub fn scan(&self, into: &mut Vec<u8>, key: u32, limit: u32, token: &[u8]) {
        into.clear();
        let prefix = keys::neighbours(key);
        let _ = write!(into, "GET /v1/records?prefix={prefix}&limit={limit}");
        self.end_without_body(into, token);
    }

    /// `GET` of any path.
    pub fn get(&self, into: &mut Vec<u8>, path: &str) {
        into.clear();
        into.extend_from_slice(b"GET ");
        into.extend_from_slice(path.as_bytes());
        self.end_without_body(into, b"");
    }

    /// `POST /write`.
    pub fn write(&self, into: &mut Vec<u8>, values: Values, named: Named, bytes: usize) {
        self.post(into, "/write", |body| {
            body.extend_from_slice(b"{\"key\":\"");
            keys::write(body, named.key);
            body.extend_from_slice(b"\",\"value\":\"");
            values.write(body, named, bytes);
            body.extend_from_slice(b"\"}");
        });
    }

    /// `POST /v1/batch/write` of puts.
    pub fn write_all(
        &self,
        into: &mut Vec<u8>,
        values: Values,
        writes: impl Iterator<Item = (Named, usize)>,
    ) {
        self.post(into, "/v1/batch/write", |body| {
            body.extend_from_slice(b"{\"writes\":[");
            for (index, (named, bytes)) in writes.enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let key = keys::text(named.key);
                let _ = write!(body, "{comma}{{\"op\":\"put\",\"key\":\"{key}\",\"value\":\"");
                values.write(body, named, bytes);
                body.extend_from_slice(b"\"}");
            }
            body.extend_from_slice(b"]}");
        });
    }

    /// `POST /v1/batch/read`.
    pub fn read_all(&self, into: &mut Vec<u8>, wanted: impl Iterator<Item = u32>) {
        self.post(into, "/v1/batch/read", |body| {
            body.extend_from_slice(b"{\"keys\":[");
            for (index, key) in wanted.enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let _ = write!(body, "{comma}\"{}\"", keys::text(key));
            }
            body.extend_from_slice(b"]}");
        });
    }

    fn end_without_body(&self, into: &mut Vec<u8>, token: &[u8]) {
        into.extend_from_slice(&self.headers);
        if !token.is_empty() {
            into.extend_from_slice(b"Terrace-Token: ");
            into.extend_from_slice(token);
            into.extend_from_slice(b"\r\n");
        }
        into.extend_from_slice(b"\r\n");
    }

    /// The body is written in place; its length is filled in afterwards, in ten digits.
    fn post(&self, into: &mut Vec<u8>, path: &str, body: impl FnOnce(&mut Vec<u8>)) {
        into.clear();
        into.extend_from_slice(b"POST ");
        into.extend_from_slice(path.as_bytes());
        into.extend_from_slice(&self.headers);
        into.extend_from_slice(b"Content-Type: application/json\r\nContent-Length: ");
        let length = into.len();
        into.extend_from_slice(b"0000000000\r\n\r\n");
        let from = into.len();
        body(into);
        let mut left = into.len() - from;
        for digit in into[length..length + 10].iter_mut().rev() {
            *digit = b"0123456789"[left % 10];
            left /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::WriteId;

    #[test]
    fn requests_are_as_the_documents_have_them() {
        let api = Api::new("h:1", &[("X-API-Key".into(), "secret".into())]);
        let text = |request: &[u8]| String::from_utf8(request.to_vec()).unwrap();
        let mut request = Vec::new();
        api.read(&mut request, 7, b"");
        let head = "GET /read/bench-0000000007 HTTP/1.1\r\nHost: h:1\r\nX-API-Key: secret\r\n\r\n";
        assert_eq!(text(&request), head);
        api.scan(&mut request, 1234, 10, b"t1");
        let scan = text(&request);
        assert!(scan.starts_with("GET /v1/records?prefix=bench-00000012&limit=10 HTTP"), "{scan}");
        assert!(scan.ends_with("\r\nTerrace-Token: t1\r\n\r\n"), "{scan}");
        let named = Named { key: 7, write: WriteId::new(0, 1) };
        api.write(&mut request, Values::new(1), named, 20);
        let written = text(&request);
        let (head, body) = written.split_once("\r\n\r\n").unwrap();
        let length: usize = head.rsplit(": ").next().unwrap().parse().unwrap();
        assert_eq!(length, body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["key"], "bench-0000000007");
        assert_eq!(Values::new(1).read(body["value"].as_str().unwrap()), Some(named));
        api.write_all(&mut request, Values::new(1), [(named, 20), (named, 30)].into_iter());
        let written = text(&request);
        let body = written.split_once("\r\n\r\n").unwrap().1;
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["writes"][1]["op"], "put");
    }
}
