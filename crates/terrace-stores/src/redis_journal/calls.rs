//! The calls of the port, as commands and scripts.

use std::time::Duration;

use redis::{Cmd, FromRedisValue, Script, Value};
use terrace_core::{
    Append, Appended, DeadLetter, Deadline, Idempotency, JournalEntry, Progress, Result, Sequence,
    Settled, Span,
};

use super::link::{GROUP, Link, Sent};
use crate::journal::{self, Packed, corrupt};

impl Link {
    fn script(&self, script: &Script) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(self.keys.len()).arg(&self.keys[..]);
        command
    }

    pub(super) async fn append(&self, requests: &[Append]) -> Result<Appended> {
        let packed = Packed::of(requests);
        let mut command = self.script(&self.scripts.append);
        command.arg(self.options.limits.writes).arg(self.options.limits.bytes);
        command.arg(format!("{{{}}}:request:", self.options.namespace));
        command.arg(Idempotency::KEPT_FOR.as_secs());
        let (millis, count) = parts(self.furthest());
        command.arg(millis).arg(count);
        for chunk in &packed.chunks {
            command.arg(chunk.count).arg(&chunk.payload);
            match chunk.idempotency.as_deref() {
                Some(request) => command.arg(request.key()).arg(&request.fingerprint()[..]),
                None => command.arg("").arg(""),
            };
        }
        // One behind the other on the connection: the settings are those at the time of the append.
        let append = self.call(&self.scripts.append, &command, Sent::Appends);
        let ((), answer) = futures_util::future::join(self.keep_looking(), append).await;
        let answer = answer?;
        let parts: Vec<Value> = read(answer)?;
        if parts.first().is_some_and(|word| text(word) == Some("full")) {
            return Err(journal::full());
        }
        let [_, epoch, previous, last, spans] =
            <[Value; 5]>::try_from(parts).map_err(|_| corrupt())?;
        let spans: Vec<(String, String)> = read(spans)?;
        let spans: Vec<Result<Span>> = spans
            .into_iter()
            .map(|(word, first)| match word.as_str() {
                "reused" => Err(Idempotency::reused()),
                _ => Ok(Span { first: sequence(&first)?, repeated: word == "repeated" }),
            })
            .collect();
        let last = sequence(text(&last).ok_or_else(corrupt)?)?;
        self.note(last);
        Ok(Appended {
            epoch: number(&epoch)?,
            previous: sequence(text(&previous).ok_or_else(corrupt)?)?,
            last,
            durability: self.durability(),
            spans: packed.spans(&spans),
        })
    }

    pub(super) async fn claim(&self, writes: usize, wait: Deadline) -> Result<Vec<JournalEntry>> {
        // How many writes an entry has is not known before: at most some hundreds when it is busy,
        // and one when it is not.
        let count = writes.div_ceil(256).clamp(1, 64);
        let left = self.take_over(count).await?;
        if !left.is_empty() {
            return Ok(left);
        }
        loop {
            let now = self.runtime.now();
            let patience = wait.instant().map_or(Duration::from_secs(1), |end| {
                end.saturating_duration_since(now).min(Duration::from_secs(1))
            });
            let millis = u64::try_from(patience.as_millis()).unwrap_or(1000);
            let mut command = redis::cmd("XREADGROUP");
            command.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(count);
            if millis > 0 {
                command.arg("BLOCK").arg(millis);
            }
            command.arg("STREAMS").arg(&self.keys[0]).arg(">");
            let answer = self.block(&command, patience).await?;
            let entries = match answer {
                Value::Nil => Vec::new(),
                answer => {
                    let streams: Vec<(String, Vec<Value>)> = read(answer)?;
                    let values = streams.into_iter().flat_map(|(_, entries)| entries);
                    entries_of(values)?
                }
            };
            if !entries.is_empty() || wait.passed(self.runtime.now()) {
                return Ok(entries);
            }
            let left = self.take_over(count).await?;
            if !left.is_empty() {
                return Ok(left);
            }
        }
    }

    /// Entries that somebody claimed and did not settle for long.
    async fn take_over(&self, count: usize) -> Result<Vec<JournalEntry>> {
        {
            let mut swept = self.swept.lock().await;
            let now = self.runtime.now();
            if swept.is_some_and(|at| now - at < self.options.takeover / 4) {
                return Ok(Vec::new());
            }
            *swept = Some(now);
        }
        let idle = u64::try_from(self.options.takeover.as_millis()).unwrap_or(u64::MAX);
        let mut command = redis::cmd("XAUTOCLAIM");
        command.arg(&self.keys[0]).arg(GROUP).arg(&self.consumer).arg(idle).arg("0");
        command.arg("COUNT").arg(count);
        let answer = self.block(&command, Duration::ZERO).await?;
        if answer == Value::Nil {
            return Ok(Vec::new());
        }
        let (_, entries, _): (String, Vec<Value>, Value) = read(answer)?;
        let entries = entries_of(entries.into_iter())?;
        if !entries.is_empty() {
            // There may be more.
            *self.swept.lock().await = None;
        }
        Ok(entries)
    }

    pub(super) async fn settle(&self, done: &[Settled]) -> Result<Progress> {
        let mut command = self.script(&self.scripts.settle);
        command.arg(GROUP);
        for settled in done {
            let own =
                if settled.first == settled.id { String::new() } else { padded(settled.first) };
            command.arg(id(settled.id)).arg(settled.writes).arg(settled.bytes).arg(own);
            command.arg(settled.dead.len());
            for letter in &settled.dead {
                command.arg(padded(letter.sequence)).arg(letter_bytes(letter));
            }
        }
        let answer = self.call(&self.scripts.settle, &command, Sent::Harmless).await?;
        progress_of(answer)
    }

    pub(super) async fn progress(&self) -> Result<Progress> {
        // Also where nobody appends: a memory that was replaced begins a life of the journal.
        self.keep_looking().await;
        let mut progress = self.ask_progress().await?;
        let furthest = self.furthest();
        if progress.epoch == 0 && furthest > Sequence::NONE {
            // It was here and is gone, as after `FLUSHALL`: a new life begins above it.
            self.raise(furthest).await?;
            progress = self.ask_progress().await?;
        }
        self.note(progress.last);
        Ok(progress)
    }

    async fn ask_progress(&self) -> Result<Progress> {
        let command = self.script(&self.scripts.progress);
        progress_of(self.call(&self.scripts.progress, &command, Sent::Harmless).await?)
    }

    pub(super) async fn peek(&self, after: Sequence, writes: usize) -> Result<Vec<JournalEntry>> {
        const AT_ONCE: usize = 64;
        let (mut after, mut seen, mut all) = (after, 0, Vec::new());
        while seen < writes.max(1) {
            let mut command = redis::cmd("XRANGE");
            command.arg(&self.keys[0]).arg(format!("({}", id(after))).arg("+");
            command.arg("COUNT").arg(AT_ONCE);
            let answer = self.call(&self.scripts.progress, &command, Sent::Harmless).await?;
            let values: Vec<Value> = read(answer)?;
            let whole = values.len() < AT_ONCE;
            let entries = entries_of(values.into_iter())?;
            seen += entries.iter().map(|entry| entry.writes.len()).sum::<usize>();
            if let Some(last) = entries.last() {
                after = last.id;
            }
            all.extend(entries);
            if whole {
                break;
            }
        }
        Ok(all)
    }

    pub(super) async fn raise(&self, floor: Sequence) -> Result<()> {
        self.note(floor);
        let mut command = self.script(&self.scripts.raise);
        let (millis, count) = parts(floor);
        command.arg(millis).arg(count);
        self.call(&self.scripts.raise, &command, Sent::Harmless).await.map(drop)
    }

    /// Learns how Redis is set up, and whether it takes writes.
    pub(super) async fn look(&self) -> Result<()> {
        self.look_at_settings().await?;
        self.raise(self.furthest()).await
    }

    /// Where an earlier life ended.
    pub(super) async fn end_of(&self, epoch: u64) -> Result<Option<Sequence>> {
        let mut command = redis::cmd("HGET");
        command.arg(&self.keys[1]).arg(format!("end:{epoch}"));
        let answer = self.call(&self.scripts.progress, &command, Sent::Harmless).await?;
        let end: Option<String> = read(answer)?;
        end.as_deref().map(sequence).transpose()
    }

    pub(super) async fn dead(&self, after: Sequence, limit: usize) -> Result<Vec<DeadLetter>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(&self.keys[3]).arg(format!("({}", padded(after))).arg("+").arg("BYLEX");
        command.arg("LIMIT").arg(0).arg(limit);
        let answer = self.call(&self.scripts.progress, &command, Sent::Harmless).await?;
        let sequences: Vec<String> = read(answer)?;
        let letters = self.letters(&sequences).await?;
        Ok(letters.into_iter().flatten().collect())
    }

    async fn letters(&self, sequences: &[String]) -> Result<Vec<Option<DeadLetter>>> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keys[2]).arg(sequences);
        let answer = self.call(&self.scripts.progress, &command, Sent::Harmless).await?;
        let letters: Vec<Option<Vec<u8>>> = read(answer)?;
        letters.into_iter().map(|bytes| bytes.map(|bytes| letter_of(&bytes)).transpose()).collect()
    }

    pub(super) async fn retry(&self, sequences: &[Sequence]) -> Result<u64> {
        let names: Vec<_> = sequences.iter().map(|sequence| padded(*sequence)).collect();
        let letters = self.letters(&names).await?;
        let mut command = self.script(&self.scripts.retry);
        for letter in letters.into_iter().flatten() {
            let payload = journal::encode(letter.sequence, &letter.write);
            command.arg(padded(letter.sequence)).arg(payload);
        }
        read(self.call(&self.scripts.retry, &command, Sent::Appends).await?)
    }

    pub(super) async fn bury(&self, sequences: &[Sequence]) -> Result<u64> {
        let mut command = self.script(&self.scripts.bury);
        sequences.iter().for_each(|sequence| {
            command.arg(padded(*sequence));
        });
        read(self.call(&self.scripts.bury, &command, Sent::Harmless).await?)
    }
}

/// A dead letter as it is stored: the length of the reason, the reason, the write.
fn letter_bytes(letter: &DeadLetter) -> Vec<u8> {
    let reason = letter.reason.as_bytes();
    let length = u32::try_from(reason.len()).unwrap_or(0);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&reason[..length as usize]);
    bytes.extend(journal::encode(letter.sequence, &letter.write));
    bytes
}

fn letter_of(bytes: &[u8]) -> Result<DeadLetter> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(corrupt)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| corrupt())?;
    let (reason, rest) = rest.split_at_checked(length).ok_or_else(corrupt)?;
    let (sequence, mut writes) = journal::decode(rest)?;
    let reason = String::from_utf8_lossy(reason).into_owned();
    let write = writes.pop().ok_or_else(corrupt)?;
    Ok(DeadLetter { sequence: sequence.ok_or_else(corrupt)?, write, reason })
}

fn entries_of(values: impl Iterator<Item = Value>) -> Result<Vec<JournalEntry>> {
    values
        .map(|value| {
            let (id, fields): (String, Vec<Vec<u8>>) = read(value)?;
            let payload = fields.get(1).ok_or_else(corrupt)?;
            let id = sequence(&id)?;
            let (first, writes) = journal::decode(payload)?;
            let bytes = payload.len() as u64;
            Ok(JournalEntry { id, first: first.unwrap_or(id), writes, bytes })
        })
        .collect()
}

fn progress_of(answer: Value) -> Result<Progress> {
    let [epoch, last, oldest, writes, bytes, dead, oldest_dead, again, now] =
        <[String; 9]>::try_from(read::<Vec<String>>(answer)?).map_err(|_| corrupt())?;
    let last = sequence(&last)?;
    let oldest = if oldest.is_empty() { None } else { Some(sequence(&oldest)?) };
    let applied = oldest.map_or(last, Sequence::before);
    let mut settled = applied;
    for limit in [oldest_dead, again] {
        if let Ok(number) = limit.parse() {
            settled = settled.min(Sequence::new(number).before());
        }
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| corrupt());
    // Both by the server's clock.
    let waited = oldest.map_or(Ok(0), |it| number(&now).map(|now| now.saturating_sub(it.millis())));
    Ok(Progress {
        epoch: number(&epoch)?,
        last,
        applied,
        settled,
        writes: number(&writes)?,
        bytes: number(&bytes)?,
        age: Duration::from_millis(waited?),
        dead: number(&dead)?,
    })
}

fn parts(sequence: Sequence) -> (u64, u64) {
    (sequence.millis(), sequence.get() & ((1 << Sequence::COUNT_BITS) - 1))
}

/// A sequence as the id of an entry.
fn id(sequence: Sequence) -> String {
    let (millis, count) = parts(sequence);
    format!("{millis}-{count}")
}

/// A sequence as text that sorts as it does.
fn padded(sequence: Sequence) -> String {
    format!("{:020}", sequence.get())
}

fn sequence(id: &str) -> Result<Sequence> {
    let (millis, count) = id.split_once('-').ok_or_else(corrupt)?;
    let millis: u64 = millis.parse().map_err(|_| corrupt())?;
    let count: u64 = count.parse().map_err(|_| corrupt())?;
    if millis >= 1 << 42 || count >= 1 << Sequence::COUNT_BITS {
        return Err(corrupt());
    }
    Ok(Sequence::new(millis << Sequence::COUNT_BITS | count))
}

fn read<T: FromRedisValue>(value: Value) -> Result<T> {
    redis::from_redis_value(value).map_err(|error| corrupt().caused_by(error))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn number(value: &Value) -> Result<u64> {
    text(value).and_then(|text| text.parse().ok()).ok_or_else(corrupt)
}
