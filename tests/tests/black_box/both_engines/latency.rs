//! A response with a value over 1 KiB on a connection that stays open is not delayed.
//!
//! Provoked with 20 reads and 20 writes in a row on one connection, of a server that does not wait for the disk. If the
//! last packet of a response waits for the client's delayed acknowledgement, each takes 44 ms. So the bound is far from
//! both and does not measure speed.

use std::time::{Duration, Instant};

use vkog_tests::{Setup, bytes, conflict, exclusive, median, pattern};

use super::ENGINE;

#[test]
fn values_over_1_kib_on_a_kept_connection_take_well_under_10_ms() {
    let _alone = exclusive();
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["--fsync", "never"]).start();
    let mut wire = server.wire();
    for kib in [2, 10, 100] {
        let (path, value) = (format!("/k/{kib}"), pattern(kib * 1024));
        wire.request("POST", &path, &value).expect(200);
        for method in ["GET", "PUT"] {
            let times = (0..20).map(|_| {
                let start = Instant::now();
                if method == "GET" {
                    wire.request("GET", &path, b"").expect(200).is(&value);
                } else {
                    wire.request("PUT", &path, &value).expect(200);
                }
                start.elapsed()
            });
            let median = median(times.collect());
            assert!(median < Duration::from_millis(10), "{method} of {kib} KiB takes {median:?} in the median");
        }
    }
}
