//! Parsers of foreign input: request heads, keys, batches and files. Each module has a function that is given any bytes, and
//! panics where what this program makes of them is not what it promises.
//!
//! `cargo +nightly fuzz run --fuzz-dir host/fuzz store` looks for such bytes; its findings are in `corpus/`, and the
//! tests here give it to the same functions, with any compiler.

pub mod batches;
pub mod keys;
pub mod requests;
mod server;
pub mod store;
pub mod wire;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Everything in the corpus, and everything in it with a byte changed, cut off or doubled: so much that it takes a few
    /// seconds.
    fn replay(name: &str, check: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = std::fs::read_dir(&folder).expect("a corpus").map(|file| file.expect("a file").path());
        let mut inputs: Vec<Vec<u8>> = files.map(|path| std::fs::read(path).expect("it can be read")).collect();
        inputs.sort();
        assert!(inputs.len() >= 10, "{} has {} files", folder.display(), inputs.len());
        inputs.iter().for_each(|input| check(input));
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            // Xorshift (Marsaglia 2003): the same numbers in every run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below.max(1) as u64) as usize
        };
        for _ in 0..1000 {
            let mut input = inputs[random(inputs.len())].clone();
            let at = random(input.len());
            match random(4) {
                0 => input.truncate(at),
                1 => input.extend_from_within(at..),
                _ if input.is_empty() => input.push(random(256) as u8),
                _ => input[at] = random(256) as u8,
            }
            check(&input);
        }
    }

    #[test]
    fn batches() {
        replay("batches", super::batches::check);
    }

    #[test]
    fn requests() {
        replay("requests", super::requests::check);
    }

    #[test]
    fn keys() {
        replay("keys", super::keys::check);
    }

    #[test]
    fn wire() {
        replay("wire", super::wire::check);
    }

    #[test]
    fn store() {
        replay("store", super::store::check);
    }
}
