//! What the described system claims of its levels, to stand beside what was measured.

/// One column of its performance table.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The level.
    pub level: u8,
    /// Latency of reads.
    pub read: &'static str,
    /// Latency of writes.
    pub write: &'static str,
    /// Requests a second.
    pub throughput: &'static str,
    /// How much of the time it answers.
    pub availability: &'static str,
}

/// The table.
pub const CLAIMS: [Claim; 5] = [
    claim(0, "10-50 ms", "10-50 ms", "1 000/s", "99 %"),
    claim(2, "1-5 ms", "10-40 ms", "5 000/s", "99.9 %"),
    claim(5, "< 1 ms", "10-40 ms", "10 000/s", "99.9 %"),
    claim(9, "< 10 ms", "10-50 ms", "50 000/s", "99.99 %"),
    claim(10, "< 1 ms", "1-5 ms", "100 000/s", "99.99 %"),
];

const fn claim(
    level: u8,
    read: &'static str,
    write: &'static str,
    throughput: &'static str,
    availability: &'static str,
) -> Claim {
    Claim { level, read, write, throughput, availability }
}
