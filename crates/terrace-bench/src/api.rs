//! The requests: the documents' API for reads and writes, the record API for what needs it.
//!
//! A server keeps records, or it keeps documents and says the same in other words: a [`Dialect`].

use std::io::Write as _;

use crate::keys;
use crate::value::{Named, Values};

/// How a server wants to be asked for what is kept by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// The path of a read, before the key.
    pub read: &'static str,
    /// The path of lists.
    pub list: &'static str,
    write: &'static str,
    /// What stands between the key and the value of a write, and after the value.
    around_value: [&'static str; 2],
}

impl Dialect {
    /// Records, whose values are texts.
    pub const RECORDS: Self = Self {
        read: "/read/",
        list: "/v1/records",
        write: "/write",
        around_value: ["\",\"value\":\"", "\"}"],
    };
    /// Documents, as level 8 keeps them; the value is a field of each.
    pub const DOCUMENTS: Self = Self {
        read: "/read/document/",
        list: "/v1/documents",
        write: "/write/document",
        around_value: ["\",\"data\":{\"value\":\"", "\"}}"],
    };
}

/// Writes requests to one server.
#[derive(Clone, Debug)]
pub struct Api {
    /// What every request carries: `Host`, and headers that the user asked for.
    headers: Vec<u8>,
    dialect: Dialect,
}

impl Api {
    /// Requests to this host, with these headers on each.
    pub fn new(host: &str, extra: &[(String, String)]) -> Self {
        let mut headers = format!(" HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
        for (name, value) in extra {
            headers.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        Self { headers, dialect: Dialect::RECORDS }
    }

    /// Asks in this dialect from now on.
    pub fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// `GET /read/{key}`, at least as new as `token` when that is not empty.
    pub fn read(&self, into: &mut Vec<u8>, key: u32, token: &[u8]) {
        into.clear();
        into.extend_from_slice(b"GET ");
        into.extend_from_slice(self.dialect.read.as_bytes());
        keys::write(into, key);
        self.end_without_body(into, token);
    }

    /// `GET /read/transaction/{user}`, at least as new as `token` when that is not empty.
    pub fn statement(&self, into: &mut Vec<u8>, values: Values, key: u32, token: &[u8]) {
        into.clear();
        into.extend_from_slice(b"GET /read/transaction/");
        values.user(into, key);
        self.end_without_body(into, token);
    }

    /// `GET /v1/records`: at most `limit` of the key's neighbours.
    pub fn scan(&self, into: &mut Vec<u8>, key: u32, limit: u32, token: &[u8]) {
        into.clear();
        let prefix = keys::neighbours(key);
        let _ = write!(into, "GET {}?prefix={prefix}&limit={limit}", self.dialect.list);
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
        let [before, after] = self.dialect.around_value;
        self.send(into, self.dialect.write, |body| {
            body.extend_from_slice(b"{\"key\":\"");
            keys::write(body, named.key);
            body.extend_from_slice(before.as_bytes());
            values.write(body, named, bytes);
            body.extend_from_slice(after.as_bytes());
        });
    }

    /// `POST /v1/transactions`; the kind of the transaction names the post, as values name their writes.
    pub fn post(&self, into: &mut Vec<u8>, values: Values, named: Named) {
        self.send(into, "/v1/transactions", |body| {
            body.extend_from_slice(b"{\"user_id\":\"");
            values.user(body, named.key);
            body.extend_from_slice(b"\",\"amount\":1.00,\"transaction_type\":\"");
            values.write(body, named, 0);
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
        self.send(into, "/v1/batch/write", |body| {
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
        self.send(into, "/v1/batch/read", |body| {
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
    fn send(&self, into: &mut Vec<u8>, path: &str, body: impl FnOnce(&mut Vec<u8>)) {
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

    #[test]
    fn documents_and_transactions_are_asked_for_as_level_8_has_them() {
        let mut api = Api::new("h:1", &[]);
        api.speak(Dialect::DOCUMENTS);
        let values = Values::new(u64::MAX);
        let named = Named { key: u32::MAX, write: WriteId::new(u16::MAX, (1 << 48) - 1) };
        let mut request = Vec::new();
        let whole = |request: &[u8]| {
            let text = String::from_utf8(request.to_vec()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let path = head.split(" HTTP").next().unwrap().to_owned();
            (path, serde_json::from_str(body).unwrap_or(serde_json::Value::Null))
        };
        api.read(&mut request, 7, b"");
        assert_eq!(whole(&request).0, "GET /read/document/bench-0000000007");
        api.scan(&mut request, 1234, 10, b"");
        assert_eq!(whole(&request).0, "GET /v1/documents?prefix=bench-00000012&limit=10");
        api.write(&mut request, values, named, 20);
        let (path, body) = whole(&request);
        assert_eq!(
            (path.as_str(), &body["key"]),
            ("POST /write/document", &"bench-4294967295".into())
        );
        assert_eq!(values.read(body["data"]["value"].as_str().unwrap()), Some(named));
        api.post(&mut request, values, named);
        let (path, body) = whole(&request);
        assert_eq!((path.as_str(), &body["amount"]), ("POST /v1/transactions", &1.0.into()));
        let kind = body["transaction_type"].as_str().unwrap();
        // The longest that there can be, and no kind may be longer than 50 characters.
        assert!(kind.len() <= 50 && values.read(kind) == Some(named), "{kind}");
        api.statement(&mut request, values, u32::MAX, b"");
        let asked = whole(&request).0;
        assert_eq!(asked, format!("GET /read/transaction/{}", body["user_id"].as_str().unwrap()));
    }
}
