//! Benchmarks: this program and its peers, in turn, on this machine, in one run.

pub(crate) mod attack;
pub(crate) mod http;
pub(crate) mod peers;
pub(crate) mod store;

/// The value in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What was measured, as a table that goes into docs/explanation/performance.md.
#[derive(Default)]
pub(crate) struct Table(Vec<[String; 5]>);

impl Table {
    /// A row: what, ours, the peer's, the ratio that was reached and the one that was asked for.
    pub(crate) fn row(&mut self, what: &str, ours: String, theirs: String, ratio: String, goal: &str) {
        eprintln!("{what}: {ours} | {theirs} | {ratio} | {goal}");
        self.0.push([what.to_owned(), ours, theirs, ratio, goal.to_owned()]);
    }

    pub(crate) fn print(&self, peer: &str) {
        println!("| what | vkog | {peer} | ratio | goal |\n|---|---|---|---|---|");
        for row in &self.0 {
            println!("| {} |", row.join(" | "));
        }
    }
}
