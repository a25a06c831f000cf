//! Standard output, which is ours alone: `check --json` has to stay JSON whatever a library prints.
//!
//! librados writes `server name not found: …` to descriptor 1 by itself (Ceph `src/mon/MonMap.cc`, seen on 16.2.15), from any of its
//! threads and at any time. So the descriptor is put aside when the process begins, and from then on descriptor 1 leads
//! to standard error.

use nix::unistd::dup2_stdout;
use std::fs::File;
use std::io::{self, IsTerminal, LineWriter, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What descriptor 1 was when the process began.
static OURS: OnceLock<Ours> = OnceLock::new();

struct Ours {
    out: Mutex<LineWriter<File>>,
    /// Columns of the terminal that it is.
    width: Option<usize>,
}

/// Puts standard output aside. To be called before any library of Ceph's is loaded; where it is not, or fails, all is as usual.
pub fn keep() {
    // Whether colours are wanted is asked of descriptor 1, once.
    let _ = console::colors_enabled();
    let stdout = io::stdout();
    let width = stdout.is_terminal().then(|| usize::from(console::Term::stdout().size().1));
    // A copy that no program which is run inherits.
    let Ok(copy) = stdout.as_fd().try_clone_to_owned() else { return };
    let out = Mutex::new(LineWriter::new(File::from(copy)));
    if OURS.set(Ours { out, width }).is_ok() {
        let _ = dup2_stdout(io::stderr());
    }
}

/// Our standard output, wherever descriptor 1 leads by now.
pub fn stdout() -> impl Write {
    Out
}

/// How wide it is, in columns; `None` where it is no terminal.
pub fn width() -> Option<usize> {
    match OURS.get() {
        Some(ours) => ours.width,
        None => io::stdout().is_terminal().then(|| usize::from(console::Term::stdout().size().1)),
    }
}

/// Standard output for a program that takes our place.
pub fn inherit() -> Stdio {
    let copy = OURS.get().and_then(|ours| locked(&ours.out).get_ref().try_clone().ok());
    copy.map_or_else(Stdio::inherit, Stdio::from)
}

struct Out;

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match OURS.get() {
            Some(ours) => locked(&ours.out).write(bytes),
            None => io::stdout().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match OURS.get() {
            Some(ours) => locked(&ours.out).flush(),
            None => io::stdout().flush(),
        }
    }
}

fn locked(out: &Mutex<LineWriter<File>>) -> std::sync::MutexGuard<'_, LineWriter<File>> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}
