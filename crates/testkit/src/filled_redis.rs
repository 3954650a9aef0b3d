//! Fills a Redis with ended jobs, a million in a few seconds: the commands that the scripts of the store run when jobs end,
//! written to a connection one behind the other. `store filled_redis` compares them with what the store writes.

use std::{
    fmt::Display,
    io::{self, BufWriter, Read, Write},
    net::TcpStream,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// Jobs in an entry of the index of completed jobs: workers complete about as many with one call.
const BATCH: usize = 100;
/// How long results are kept.
const RESULT_TTL_MS: u64 = 86_400_000;
/// When the first job ended: so long ago.
const AGE_MS: u64 = 3_600_000;
/// Jobs that end in a millisecond.
const JOBS_PER_MS: usize = 10;

/// What a Redis is filled with: for each queue its jobs.
#[derive(Debug, Clone, Copy)]
pub struct RedisFill {
    /// Queues, by the names `q0`, `q1`, ...
    pub queues: usize,
    /// Completed jobs of each queue.
    pub completed: usize,
    /// Discarded jobs of each queue, which are dead letters.
    pub discarded: usize,
    /// Of these many discarded jobs one failed with `upstream Timed Out`, the others with `no such user`.
    pub timed_out_every: usize,
}

impl RedisFill {
    /// The names of the queues.
    #[must_use]
    pub fn queue_names(&self) -> Vec<String> {
        (0..self.queues).map(|number| format!("q{number}")).collect()
    }

    /// All jobs.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.queues * (self.completed + self.discarded)
    }

    /// The discarded jobs that failed with `upstream Timed Out`.
    #[must_use]
    pub fn timed_out(&self) -> usize {
        self.queues * (self.discarded / self.timed_out_every)
    }

    /// Writes the jobs to the Redis at a URL, such as `redis://127.0.0.1:6379/5`, which must be empty.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses a command.
    pub fn write(&self, url: &str) -> io::Result<()> {
        let (address, database) = url.trim_start_matches("redis://").split_once('/').unwrap_or((url, "0"));
        let stream = TcpStream::connect(address)?;
        let mut answers = stream.try_clone()?;
        let mut commands = CommandWriter { stream: BufWriter::with_capacity(1 << 16, stream) };
        // Redis reads no more while its answers are not read
        let reading = thread::spawn(move || read_answers(&mut answers));
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis());
        let now = now.map_err(io::Error::other)?;
        commands.send(&[b"SELECT", database.as_bytes()])?;
        for queue in self.queue_names() {
            self.write_queue(&mut commands, &queue, now)?;
        }
        commands.send(&[b"QUIT"])?;
        commands.stream.flush()?;
        reading.join().map_err(|_| io::Error::other("the reader of answers is gone"))?
    }

    fn write_queue(&self, commands: &mut CommandWriter, queue: &str, now: u64) -> io::Result<()> {
        let (tag, first_ms) = (queue_tag(queue), now - AGE_MS);
        let key = |name: &str| format!("galley:{{{queue}}}:{name}");
        commands.send(&[b"ZADD", b"galley:queues", text(tag).as_bytes(), queue.as_bytes()])?;
        let expiry = text(now + RESULT_TTL_MS);
        let set = |commands: &mut CommandWriter, id: &str, result: &str| {
            let key = key(&format!("r:{id}"));
            commands.send(&[b"SET", key.as_bytes(), result.as_bytes(), b"PXAT", expiry.as_bytes()])
        };
        let (mut ids, mut at) = (Vec::with_capacity(BATCH), first_ms);
        for number in 1..=self.completed {
            at = first_ms + (number / JOBS_PER_MS) as u64;
            let id = job_id(at, number, tag);
            set(commands, &id, &format!("-\nc test.echo 0 1 3 - - {at} {at} r\n{{\"number\":{number}}}"))?;
            ids.push(base64(&id));
            if ids.len() == BATCH || number == self.completed {
                let (index, number, at) = (key("completed_index"), text(number), text(at));
                commands.send(&[
                    b"XADD",
                    index.as_bytes(),
                    number.as_bytes(),
                    at.as_bytes(),
                    ids.join(" ").as_bytes(),
                ])?;
                ids.clear();
            }
        }
        for number in 1..=self.discarded {
            at += 1;
            let id = job_id(at, self.completed + number, tag);
            let is_timed_out = number % self.timed_out_every == 0;
            let error =
                if is_timed_out { ("timed_out", "upstream Timed Out") } else { ("handler_error", "no such user") };
            set(commands, &id, &discarded_job(&id, queue, number, error))?;
            for list in ["discarded", "dead"] {
                commands.send(&[b"ZADD", key(list).as_bytes(), text(at).as_bytes(), id.as_bytes()])?;
            }
        }
        for list in ["completed_index", "discarded"] {
            commands.send(&[b"PEXPIRE", key(list).as_bytes(), text(RESULT_TTL_MS).as_bytes()])?;
        }
        for (field, count) in [("completed", self.completed), ("discarded", self.discarded)] {
            commands.send(&[b"HINCRBY", key("stats").as_bytes(), field.as_bytes(), text(count).as_bytes()])?;
        }
        Ok(())
    }
}

fn text(value: impl Display) -> String {
    value.to_string()
}

/// An id as lists of many ids hold it.
fn base64(id: &str) -> String {
    let number = u128::from_str_radix(&id.replace('-', ""), 16).expect("hexadecimal digits");
    BASE64_URL_SAFE_NO_PAD.encode(number.to_be_bytes())
}

/// A whole job that failed for good.
fn discarded_job(id: &str, queue: &str, number: usize, (code, message): (&str, &str)) -> String {
    let times = ["created_at", "enqueued_at", "started_at", "completed_at", "discarded_at"]
        .map(|name| format!("\"{name}\":\"2026-01-01T00:00:01.000Z\""))
        .join(",");
    let error = format!(
        "{{\"code\":\"{code}\",\"type\":\"mail.error\",\"message\":\"{message}\",\"retryable\":false,\
         \"attempt\":1,\"occurred_at\":\"2026-01-01T00:00:01.000Z\"}}"
    );
    format!(
        "-\n{{\"id\":\"{id}\",\"type\":\"test.echo\",\"queue\":\"{queue}\",\"args\":[{number}],\"priority\":0,\
         \"state\":\"discarded\",\"attempt\":1,\"max_attempts\":1,\"retry\":{{\"max_attempts\":1}},{times},\
         \"error\":{error},\"errors\":[{error}]}}"
    )
}

/// An id without the address of a stream entry, as `common::id` makes them.
fn job_id(milliseconds: u64, number: usize, tag: u16) -> String {
    let (milliseconds, number) = (u128::from(milliseconds), number as u128);
    let bits = (milliseconds & 0xffff_ffff_ffff) << 80
        | 0x7 << 76
        | (number >> 16 & 0xfff) << 64
        | 0b10 << 62
        | (number & 0xffff) << 46
        | u128::from(tag) << 30
        | 0xff << 22;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The tag of a queue in the ids of its jobs, as `common::id` makes it.
fn queue_tag(queue: &str) -> u16 {
    let hash = queue.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> 16) as u16 ^ (hash & 0xffff) as u16
}

struct CommandWriter {
    stream: BufWriter<TcpStream>,
}

impl CommandWriter {
    fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        write!(self.stream, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.stream, "${}\r\n", word.len())?;
            self.stream.write_all(word)?;
            self.stream.write_all(b"\r\n")?;
        }
        Ok(())
    }
}

/// Reads the answers to the end; an error among them ends it.
fn read_answers(stream: &mut TcpStream) -> io::Result<()> {
    let (mut buffer, mut is_line_start) = (vec![0; 1 << 16], true);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        for (place, byte) in buffer[..length].iter().enumerate() {
            if is_line_start && *byte == b'-' {
                return Err(io::Error::other(String::from_utf8_lossy(&buffer[place..length]).into_owned()));
            }
            is_line_start = *byte == b'\n';
        }
    }
}
