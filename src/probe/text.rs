//! A report as a page of text.

use std::fmt;

use super::report::{Connects, OneConnection, ProbeReport};
use super::words::{counted, figure, mb_s, ms, size};

/// Width of a line.
const COLUMNS: usize = 80;
/// Where what is said begins, behind its label.
const INDENT: usize = 13;

impl fmt::Display for ProbeReport {
    /// All of it but the verdict, in lines of 80 letters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let objects = counted(self.objects, "object");
        let (there, read) = (figure(self.object_bytes as f64 / 1e6), figure(self.bytes as f64 / 1e6));
        say(
            f,
            "store",
            &format!("{}: {objects} of {there} MB; {read} MB read in {} s", self.store, figure(self.seconds)),
        )?;
        if let Some(rtt) = self.rtt_s {
            say(f, "round trip", &ms(rtt))?;
        }
        if let Some(connects) = &self.connect {
            say(f, "connecting", &connects.to_string())?;
        }
        let first = &self.first_byte;
        let alone =
            format!("{}, p99 {}: of 4 KiB, {} times", ms(first.p50_s), ms(first.p99_s), figure(first.samples as f64));
        let fresh = self.connect.as_ref().and_then(|connects| connects.first_byte);
        let fresh = fresh.map_or(String::new(), |fresh| format!("; {} on a fresh connection", ms(fresh.p50_s)));
        say(f, "first byte", &format!("{alone}{fresh}"))?;
        writeln!(f)?;
        self.table(f)?;
        writeln!(f)?;
        let share = figure(100.0 * self.knee.goodput_bytes_s / self.best.goodput_bytes_s);
        let (knee, best) = (mb_s(self.knee.goodput_bytes_s), mb_s(self.best.goodput_bytes_s));
        say(
            f,
            "knee",
            &format!(
                "{}: {knee} MB/s, {share} % of the best, {best} MB/s",
                self.at(self.knee.connections, self.knee.request_bytes)
            ),
        )?;
        if let Some(connection) = &self.connection {
            say(f, "one alone", &connection.to_string())?;
        }
        let held = self.at(self.steady.connections, self.steady.request_bytes);
        say(f, "held", &format!("{} for {} s by {held}", self.held(None), figure(self.steady.seconds)))?;
        say(f, "limit", &format!("{}.", self.explanation()))?;
        say(f, "loader", &self.settings(self.in_flight()))?;
        for sign in &self.signs {
            say(f, "sign", &sign.to_string())?;
        }
        Ok(())
    }
}

impl ProbeReport {
    /// `8 connections of 1 MiB`; requests where there are no connections.
    pub(super) fn at(&self, connections: usize, request_bytes: usize) -> String {
        format!("{} of {}", counted(connections, self.noun()), size(request_bytes as u64))
    }

    pub(super) fn noun(&self) -> &'static str {
        if self.connect.is_some() { "connection" } else { "request" }
    }

    /// Goodput by size of request and connections.
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sizes: Vec<usize> = self.grid.iter().map(|point| point.request_bytes).collect();
        let mut counts: Vec<usize> = self.grid.iter().map(|point| point.connections).collect();
        for numbers in [&mut sizes, &mut counts] {
            numbers.sort_unstable();
            numbers.dedup();
        }
        let across = if self.connect.is_some() { "connections" } else { "requests at a time" };
        writeln!(f, "goodput in MB/s: {across} across, bytes per request down; * is the knee")?;
        write!(f, "{:INDENT$}", "")?;
        let heads: String = counts.iter().map(|count| format!("{count:>7} ")).collect();
        writeln!(f, "{}", heads.trim_end())?;
        for bytes in sizes {
            write!(f, "{:>INDENT$}", size(bytes as u64))?;
            let mut line = String::new();
            for count in &counts {
                let point = self.grid.iter().find(|p| p.request_bytes == bytes && p.connections == *count);
                let cell = point.map_or(String::new(), |point| mb_s(point.goodput_bytes_s));
                let is_knee = (self.knee.connections, self.knee.request_bytes) == (*count, bytes);
                line.push_str(&format!("{cell:>7}{}", if is_knee { "*" } else { " " }));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl fmt::Display for Connects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for TCP", ms(self.tcp.p50_s))?;
        if let Some(tls) = &self.tls {
            write!(f, ", {} for TLS", ms(tls.p50_s))?;
        }
        let (fresh, addresses) = (counted(self.tcp.samples, "connection"), self.addresses.len());
        write!(f, ", {} for the name: {fresh} to {addresses} address", ms(self.resolve.p50_s))?;
        f.write_str(if addresses == 1 { "" } else { "es" })
    }
}

impl fmt::Display for OneConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MB/s; {} while a body is on its way", mb_s(self.goodput_bytes_s), mb_s(self.body_bytes_s))?;
        match (self.capped, self.window_bytes) {
            (true, Some(bytes)) => {
                write!(f, ", about {} in a round trip: capped, by a window, losses or the server", size(bytes as u64))
            }
            (true, None) => f.write_str(": capped, several carry more"),
            (false, _) => f.write_str(": not capped"),
        }
    }
}

/// A label, and what it says in lines of their own.
fn say(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    write!(f, "{label:<INDENT$}")?;
    let mut column = INDENT;
    for (number, word) in text.split(' ').enumerate() {
        let letters = word.chars().count();
        if number > 0 && column + 1 + letters > COLUMNS {
            write!(f, "\n{:INDENT$}", "")?;
            column = INDENT;
        } else if number > 0 {
            f.write_str(" ")?;
            column += 1;
        }
        f.write_str(word)?;
        column += letters;
    }
    writeln!(f)
}
