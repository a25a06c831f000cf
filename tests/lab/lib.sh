# shellcheck shell=bash
# What every command of the lab shares: saying what is wrong, pid files, taking a lab apart.
# A lab is one directory. Everything the lab makes lives in it and goes when the lab is stopped.

me=${0##*/}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s: %s\n' "$me" "$*" >&2; }

# die WHAT [WHAT-TO-DO]
die() {
    say "$1"
    if [ $# -gt 1 ]; then printf '    %s\n' "$2" >&2; fi
    exit 1
}

# The usage text is the comment at the top of the command itself.
usage() {
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

# need PROGRAM... : a missing program is answered with the command that installs it.
need() {
    local program
    for program; do
        command -v "$program" >/dev/null ||
            die "$program is not installed" "run: $here/install"
    done
}

# pid_of FILE NEEDLE: prints the process id in FILE, if that process lives and is ours.
# A pid file can outlive its process, and the number can be given to a stranger;
# so the command line must contain NEEDLE before anything is sent to it.
pid_of() {
    local pid
    [ -s "$1" ] || return 1
    pid=$(tr -d '[:space:]' <"$1")
    [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$2" || return 1
    printf '%s\n' "$pid"
}

# state_of FILE NEEDLE: running, paused or dead.
state_of() {
    local pid
    pid=$(pid_of "$1" "$2") || { echo dead; return; }
    # The state stands behind the command name, which may itself hold blanks and brackets.
    case $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) in
        T*) echo paused ;;
        Z* | '') echo dead ;;
        *) echo running ;;
    esac
}

# end_process FILE NEEDLE: SIGKILL, and wait until it is really gone.
end_process() {
    local pid tries=0
    if pid=$(pid_of "$1" "$2"); then
        kill -KILL "$pid" 2>/dev/null || true
        while [ "$(state_of "$1" "$2")" != dead ]; do
            tries=$((tries + 1))
            [ "$tries" -le 100 ] || { say "process $pid ($1) does not go away"; return 1; }
            sleep 0.05
        done
    fi
    rm -f -- "$1"
}

# open_lab DIR: the lab's own variables; refuses what is no lab.
# Sets LAB, FSID, MON_HOST, MONHOST, NETNS, ADDRESS.
open_lab() {
    [ -f "$1/env" ] || die "$1 is no lab, or it was never started" "run: $here/ceph start $1"
    # shellcheck disable=SC1091
    . "$1/env"
}

# exec_in_net COMMAND... becomes the command, where the lab's Ceph can be reached; in_net only runs it.
exec_in_net() {
    if [ -n "${NETNS:-}" ]; then exec nsenter --net="/run/netns/$NETNS" -- "$@"; fi
    exec "$@"
}
in_net() { (exec_in_net "$@"); }
