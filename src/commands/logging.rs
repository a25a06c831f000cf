//! Where the lines of the `log` crate go: those on changes to the system's journal, where there is one, and to stderr whatever
//! the administrator asks for.

use crate::sys::plain::plain;
use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::JournalLog;

/// What the journal gets: each change, and what went wrong beside one.
const JOURNAL: LevelFilter = LevelFilter::Info;

struct Both {
    journal: Option<JournalLog>,
    stderr: LevelFilter,
}

impl Log for Both {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.stderr || (self.journal.is_some() && metadata.level() <= JOURNAL)
    }

    fn log(&self, record: &Record) {
        if record.level() <= JOURNAL {
            if let Some(journal) = &self.journal {
                journal.log(record);
            }
        }
        if record.level() <= self.stderr {
            let level = record.level().as_str().to_lowercase();
            errln!("rbd-preflight: {level}: {}", plain(&record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Lines of `stderr` and above go to stderr, what is done to the journal.
pub fn begin(stderr: LevelFilter) {
    let journal =
        JournalLog::new().ok().map(|journal| journal.with_syslog_identifier("rbd-preflight".to_owned()));
    let most = if journal.is_some() { JOURNAL.max(stderr) } else { stderr };
    if log::set_boxed_logger(Box::new(Both { journal, stderr })).is_ok() {
        log::set_max_level(most);
    }
    let words: Vec<_> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    log::debug!("version {}, called with: {}", env!("CARGO_PKG_VERSION"), words.join(" "));
}
