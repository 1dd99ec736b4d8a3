//! The benchmark's own binary again, as another process: so that a client's processor time and memory are its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Runs this binary in a role with its task and gives what it measured.
pub(crate) fn measure<T: DeserializeOwned>(role: &str, task: &impl Serialize) -> T {
    let mut child = Companion::start(role, task);
    let measured = child.line();
    drop(child.input.take());
    let status = child.child.wait().unwrap();
    assert!(status.success(), "the process for {role} failed: {status}");
    serde_json::from_str(&measured).unwrap_or_else(|error| panic!("{role} said {measured:?}: {error}"))
}

/// A process that serves until it is dropped.
pub(crate) struct Companion {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Companion {
    pub(crate) fn start(role: &str, task: &impl Serialize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([role, &serde_json::to_string(task).unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Companion { child, input, output }
    }

    /// Its next line: empty if it ended.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Asks for its numbers.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self) -> T {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side of a companion: says a line for each line that it is sent, until the benchmark ends.
pub(crate) fn answer(mut with: impl FnMut() -> String) {
    for byte in std::io::stdin().lock().bytes() {
        if byte.is_err() {
            return;
        }
        println!("{}", with());
    }
}

/// The task of this process, if it was started in this role.
pub(crate) fn task<T: DeserializeOwned>(role: &str) -> Option<T> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == role).then(|| serde_json::from_str(&arguments.next().unwrap()).unwrap())
}
