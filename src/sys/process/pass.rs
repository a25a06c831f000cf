//! Programs that take our own place towards whoever called us: their input, output and process group are ours, and
//! no deadline is set. Only for hookscripts, which Proxmox VE itself runs so.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Runs a program to its end; what it reads and writes is not ours to see.
pub fn pass_through(program: &Path, args: &[OsString], env: (&str, &str)) -> io::Result<ExitStatus> {
    match command(program, args, env).status() {
        Err(error) if has_no_header(&error) => {
            command(Path::new("/bin/sh"), &by_shell(program, args), env).status()
        }
        result => result,
    }
}

/// Becomes a program, with our process number; its end is ours. What comes back is why it could not be.
pub fn become_program(program: &Path, args: &[OsString], env: (&str, &str)) -> io::Error {
    let error = command(program, args, env).exec();
    if has_no_header(&error) {
        return command(Path::new("/bin/sh"), &by_shell(program, args), env).exec();
    }
    error
}

fn command(program: &Path, args: &[OsString], (name, value): (&str, &str)) -> Command {
    let mut command = Command::new(program);
    command.args(args).env(name, value).stdout(crate::sys::stdout::inherit());
    command
}

/// Perl, by which PVE runs hookscripts, hands a script without `#!` to the shell (execvp).
fn has_no_header(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::ENOEXEC as i32)
}

fn by_shell(program: &Path, args: &[OsString]) -> Vec<OsString> {
    std::iter::once(program.as_os_str())
        .chain(args.iter().map(AsRef::<OsStr>::as_ref))
        .map(OsStr::to_owned)
        .collect()
}
