//! What a line may say.

use std::fmt;

/// The largest number of threads a command may ask for.
pub const MAX_THREADS: u64 = 64;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Ping,
    Progress,
    /// `None`: every background job.
    Stop(Option<JobKind>),
    Dirty(Dirty),
    Cpu {
        amount: CpuAmount,
        threads: u64,
    },
    Spin {
        threads: u64,
    },
    Checksum {
        mib: u64,
        seed: u64,
    },
    Disk {
        job: DiskJob,
        /// The disk's serial number.
        volume: String,
        threads: u64,
    },
    /// New contents for a share of a volume.
    Rewrite {
        volume: String,
        percent: u64,
    },
}

/// The background jobs; at most one of each runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    Dirty,
    Spin,
    Checksum,
    Disk,
}

impl JobKind {
    pub const ALL: [JobKind; 4] = [JobKind::Dirty, JobKind::Spin, JobKind::Checksum, JobKind::Disk];
}

/// How a volume is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskJob {
    /// 4 KiB at random places.
    RandWrite,
    /// 128 KiB, one behind the other.
    SeqWrite,
    /// 4 KiB at random places, with a flush after each.
    Fsync,
}

/// How to dirty memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirty {
    pub pattern: Pattern,
    /// Page memory dirtied a second by all threads together, 10^6 bytes; 0 = as fast as it goes.
    pub mbps: u64,
    /// Memory that is written to, shared out among the threads.
    pub mib: u64,
    pub threads: u64,
}

/// Which pages are written, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Every page in order, whole, with new random contents.
    Sequential,
    /// Pages at random, whole, with new random contents.
    Random,
    /// Every page in order, one 8-byte word of it.
    Stride,
    /// Every page in order, whole, with the bytes that it already holds.
    SameValue,
    /// 15 of 16 writes go to the first 16th of the pages, at random; whole, with new random contents.
    Hot,
}

/// How much CPU work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuAmount {
    Millis(u64),
    /// For each thread.
    Iterations(u64),
}

/// Why a line was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseError {
    Empty,
    UnknownCommand(String),
    NotKeyValue(String),
    UnknownKey(String),
    Twice(String),
    Missing(&'static str),
    /// Not a number, or outside of what the key allows.
    BadNumber {
        key: &'static str,
        min: u64,
        max: u64,
    },
    BadPattern(String),
    BadDiskJob(String),
    BadJob(String),
    /// `cpu` takes exactly one of `ms` and `iterations`.
    MsOrIterations,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty line"),
            Self::UnknownCommand(c) => write!(f, "unknown command '{c}'"),
            Self::NotKeyValue(w) => write!(f, "'{w}' is not key=value"),
            Self::UnknownKey(k) => write!(f, "unknown key '{k}'"),
            Self::Twice(k) => write!(f, "'{k}' is given twice"),
            Self::Missing(k) => write!(f, "'{k}' is missing"),
            Self::BadNumber { key, min, max } => {
                write!(f, "'{key}' must be a number from {min} to {max}")
            }
            Self::BadPattern(p) => write!(f, "unknown pattern '{p}'"),
            Self::BadDiskJob(j) => write!(f, "unknown disk job '{j}'"),
            Self::BadJob(j) => write!(f, "nothing called '{j}' to stop"),
            Self::MsOrIterations => f.write_str("give either 'ms' or 'iterations'"),
        }
    }
}

impl Command {
    /// Parses a line without its line end.
    ///
    /// # Errors
    /// Says which word is wrong; nothing is guessed.
    pub fn parse(line: &str) -> Result<Self, ParseError> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().ok_or(ParseError::Empty)?;
        let rest: Vec<&str> = words.collect();
        match name {
            "ping" => Keys::parse(&rest, &[]).map(|_| Self::Ping),
            "progress" => Keys::parse(&rest, &[]).map(|_| Self::Progress),
            "stop" => match rest.as_slice() {
                [] => Ok(Self::Stop(None)),
                [one] => JobKind::parse(one).map(|k| Self::Stop(Some(k))),
                [_, other, ..] => Err(ParseError::BadJob(clip(other))),
            },
            "dirty" => {
                let keys = Keys::parse(&rest, &["pattern", "mbps", "mib", "threads"])?;
                Ok(Self::Dirty(Dirty {
                    pattern: Pattern::parse(keys.get("pattern").ok_or(ParseError::Missing("pattern"))?)?,
                    mbps: keys.number("mbps", 0, 1_000_000)?.unwrap_or(0),
                    mib: keys.required("mib", 1, 1 << 20)?,
                    threads: keys.threads()?,
                }))
            }
            "cpu" => {
                let keys = Keys::parse(&rest, &["ms", "iterations", "threads"])?;
                let amount = match (keys.number("ms", 1, 3_600_000)?, keys.number("iterations", 1, u64::MAX)?) {
                    (Some(ms), None) => CpuAmount::Millis(ms),
                    (None, Some(n)) => CpuAmount::Iterations(n),
                    _ => return Err(ParseError::MsOrIterations),
                };
                Ok(Self::Cpu { amount, threads: keys.threads()? })
            }
            "spin" => Ok(Self::Spin { threads: Keys::parse(&rest, &["threads"])?.threads()? }),
            "checksum" => {
                let keys = Keys::parse(&rest, &["mib", "seed"])?;
                Ok(Self::Checksum {
                    mib: keys.required("mib", 1, 1 << 20)?,
                    seed: keys.number("seed", 0, u64::MAX)?.unwrap_or(1),
                })
            }
            "disk" => {
                let keys = Keys::parse(&rest, &["job", "volume", "threads"])?;
                Ok(Self::Disk {
                    job: DiskJob::parse(keys.get("job").ok_or(ParseError::Missing("job"))?)?,
                    volume: keys.text("volume")?,
                    threads: keys.threads()?,
                })
            }
            "rewrite" => {
                let keys = Keys::parse(&rest, &["volume", "percent"])?;
                Ok(Self::Rewrite { volume: keys.text("volume")?, percent: keys.required("percent", 0, 100)? })
            }
            other => Err(ParseError::UnknownCommand(clip(other))),
        }
    }
}

impl JobKind {
    fn parse(s: &str) -> Result<Self, ParseError> {
        Ok(match s {
            "dirty" => Self::Dirty,
            "spin" => Self::Spin,
            "checksum" => Self::Checksum,
            "disk" => Self::Disk,
            other => return Err(ParseError::BadJob(clip(other))),
        })
    }
}

impl DiskJob {
    fn parse(s: &str) -> Result<Self, ParseError> {
        Ok(match s {
            "randwrite" => Self::RandWrite,
            "seqwrite" => Self::SeqWrite,
            "fsync" => Self::Fsync,
            other => return Err(ParseError::BadDiskJob(clip(other))),
        })
    }
}

impl Pattern {
    fn parse(s: &str) -> Result<Self, ParseError> {
        Ok(match s {
            "sequential" => Self::Sequential,
            "random" => Self::Random,
            "stride" => Self::Stride,
            "same-value" => Self::SameValue,
            "hot" => Self::Hot,
            other => return Err(ParseError::BadPattern(clip(other))),
        })
    }
}

/// The `key=value` words of a command.
struct Keys<'a>(Vec<(&'static str, &'a str)>);

impl<'a> Keys<'a> {
    fn parse(words: &[&'a str], known: &[&'static str]) -> Result<Self, ParseError> {
        let mut keys: Vec<(&'static str, &'a str)> = Vec::with_capacity(words.len());
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| ParseError::NotKeyValue(clip(word)))?;
            let key = *known.iter().find(|k| **k == key).ok_or_else(|| ParseError::UnknownKey(clip(key)))?;
            if keys.iter().any(|(k, _)| *k == key) {
                return Err(ParseError::Twice(key.to_owned()));
            }
            keys.push((key, value));
        }
        Ok(Self(keys))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    fn text(&self, key: &'static str) -> Result<String, ParseError> {
        self.get(key).map(str::to_owned).ok_or(ParseError::Missing(key))
    }

    fn number(&self, key: &'static str, min: u64, max: u64) -> Result<Option<u64>, ParseError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        // `parse` would take a leading '+'.
        let number = value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok()).flatten();
        number.filter(|n| (min..=max).contains(n)).map(Some).ok_or(ParseError::BadNumber { key, min, max })
    }

    fn required(&self, key: &'static str, min: u64, max: u64) -> Result<u64, ParseError> {
        self.number(key, min, max)?.ok_or(ParseError::Missing(key))
    }

    fn threads(&self) -> Result<u64, ParseError> {
        Ok(self.number("threads", 1, MAX_THREADS)?.unwrap_or(1))
    }
}

/// What is quoted back in an error: short, whatever came in.
fn clip(s: &str) -> String {
    s.chars().take(24).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn err(line: &str) -> ParseError {
        Command::parse(line).expect_err(line)
    }

    #[test]
    fn commands_without_arguments() {
        assert_eq!(Command::parse("ping"), Ok(Command::Ping));
        assert_eq!(Command::parse("  progress  "), Ok(Command::Progress));
        assert_eq!(Command::parse("stop\r"), Ok(Command::Stop(None)));
        assert_eq!(Command::parse("stop spin"), Ok(Command::Stop(Some(JobKind::Spin))));
        assert_eq!(err("ping now"), ParseError::NotKeyValue("now".into()));
        assert_eq!(err("ping a=1"), ParseError::UnknownKey("a".into()));
        assert_eq!(err("stop all"), ParseError::BadJob("all".into()));
        assert_eq!(err("stop dirty spin"), ParseError::BadJob("spin".into()));
    }

    #[test]
    fn dirty() {
        assert_eq!(
            Command::parse("dirty pattern=same-value mbps=40 mib=64 threads=2"),
            Ok(Command::Dirty(Dirty { pattern: Pattern::SameValue, mbps: 40, mib: 64, threads: 2 }))
        );
        for (name, pattern) in [
            ("sequential", Pattern::Sequential),
            ("random", Pattern::Random),
            ("stride", Pattern::Stride),
            ("hot", Pattern::Hot),
        ] {
            assert_eq!(
                Command::parse(&format!("dirty mib=1 pattern={name}")),
                Ok(Command::Dirty(Dirty { pattern, mbps: 0, mib: 1, threads: 1 }))
            );
        }
        assert_eq!(err("dirty mib=1"), ParseError::Missing("pattern"));
        assert_eq!(err("dirty pattern=hot"), ParseError::Missing("mib"));
        assert_eq!(err("dirty pattern=up mib=1"), ParseError::BadPattern("up".into()));
        assert_eq!(err("dirty pattern=hot mib=1 mib=2"), ParseError::Twice("mib".into()));
        assert_eq!(err("dirty pattern=hot mib=0"), ParseError::BadNumber { key: "mib", min: 1, max: 1 << 20 });
        assert_eq!(
            err("dirty pattern=hot mib=1 threads=65"),
            ParseError::BadNumber { key: "threads", min: 1, max: MAX_THREADS }
        );
    }

    #[test]
    fn cpu_spin_checksum() {
        assert_eq!(Command::parse("cpu ms=20"), Ok(Command::Cpu { amount: CpuAmount::Millis(20), threads: 1 }));
        assert_eq!(
            Command::parse("cpu iterations=7 threads=2"),
            Ok(Command::Cpu { amount: CpuAmount::Iterations(7), threads: 2 })
        );
        assert_eq!(err("cpu"), ParseError::MsOrIterations);
        assert_eq!(err("cpu ms=1 iterations=1"), ParseError::MsOrIterations);
        assert_eq!(Command::parse("spin"), Ok(Command::Spin { threads: 1 }));
        assert_eq!(Command::parse("checksum mib=3"), Ok(Command::Checksum { mib: 3, seed: 1 }));
        assert_eq!(Command::parse("checksum mib=3 seed=9"), Ok(Command::Checksum { mib: 3, seed: 9 }));
    }

    #[test]
    fn disks() {
        for (name, job) in
            [("randwrite", DiskJob::RandWrite), ("seqwrite", DiskJob::SeqWrite), ("fsync", DiskJob::Fsync)]
        {
            assert_eq!(
                Command::parse(&format!("disk job={name} volume=scratch threads=4")),
                Ok(Command::Disk { job, volume: "scratch".into(), threads: 4 })
            );
        }
        assert_eq!(err("disk volume=x"), ParseError::Missing("job"));
        assert_eq!(err("disk job=randwrite"), ParseError::Missing("volume"));
        assert_eq!(err("disk job=randread volume=x"), ParseError::BadDiskJob("randread".into()));
        assert_eq!(Command::parse("stop disk"), Ok(Command::Stop(Some(JobKind::Disk))));
        assert_eq!(
            Command::parse("rewrite volume=scratch percent=10"),
            Ok(Command::Rewrite { volume: "scratch".into(), percent: 10 })
        );
        assert_eq!(err("rewrite volume=x percent=101"), ParseError::BadNumber { key: "percent", min: 0, max: 100 });
    }

    #[test]
    fn nonsense_is_refused_and_quoted_short() {
        assert_eq!(err(""), ParseError::Empty);
        assert_eq!(err("   "), ParseError::Empty);
        for bad in ["+1", "-1", "", "1e3", "0x10", "99999999999999999999999", "１"] {
            assert!(matches!(err(&format!("cpu ms={bad}")), ParseError::BadNumber { key: "ms", .. }), "{bad}");
        }
        let long = "é".repeat(300);
        assert_eq!(err(&long), ParseError::UnknownCommand("é".repeat(24)));
        assert!(err(&format!("dirty {long}=1")).to_string().len() < 100);
    }
}
