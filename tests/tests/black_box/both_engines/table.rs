//! Every row of the table of `/k/{key}`: status and first words, with any set of plugins.
//!
//! Provoked over the network against four servers for each row: with bytes and conflict, with neither, and with each
//! alone. Rows that depend on a plugin differ by it; all others must not.

use vkog_tests::{Setup, bytes, conflict};

use super::ENGINE;
use crate::rows::{self, Row, With};

/// Starts a server with each set of plugins, and checks one row.
fn with_every_set(row: Row) {
    for (with_bytes, with_conflict) in [(true, true), (false, false), (true, false), (false, true)] {
        let mut setup = Setup::on(ENGINE).args(["--max-size", "1000", "--max-value", "1000000"]);
        if with_bytes {
            setup = setup.load(bytes());
        }
        if with_conflict {
            setup = setup.load(conflict());
        }
        eprintln!("with bytes: {with_bytes}, with conflict: {with_conflict}");
        row(&setup.start(), With { bytes: with_bytes, conflict: with_conflict });
    }
}

#[test]
fn get_of_a_present_key_is_its_value_byte_for_byte() {
    with_every_set(rows::get_of_a_present_key_is_its_value_byte_for_byte);
}

#[test]
fn get_of_an_absent_key_is_404() {
    with_every_set(rows::get_of_an_absent_key_is_404);
}

#[test]
fn post_of_an_absent_key_creates_it() {
    with_every_set(rows::post_of_an_absent_key_creates_it);
}

#[test]
fn post_of_a_present_key_is_409_with_conflict_and_writes_without() {
    with_every_set(rows::post_of_a_present_key_is_409_with_conflict_and_writes_without);
}

#[test]
fn put_of_a_present_key_updates_it() {
    with_every_set(rows::put_of_a_present_key_updates_it);
}

#[test]
fn put_of_an_absent_key_is_404_with_conflict_and_writes_without() {
    with_every_set(rows::put_of_an_absent_key_is_404_with_conflict_and_writes_without);
}

#[test]
fn an_empty_body_is_400_and_writes_nothing() {
    with_every_set(rows::an_empty_body_is_400_and_writes_nothing);
}

#[test]
fn a_write_over_the_limit_is_413_with_bytes_and_writes_without() {
    with_every_set(rows::a_write_over_the_limit_is_413_with_bytes_and_writes_without);
}

#[test]
fn delete_of_a_present_key_removes_it() {
    with_every_set(rows::delete_of_a_present_key_removes_it);
}

#[test]
fn delete_of_an_absent_key_is_404() {
    with_every_set(rows::delete_of_an_absent_key_is_404);
}

#[test]
fn any_method_without_a_key_is_400() {
    with_every_set(rows::any_method_without_a_key_is_400);
}

#[test]
fn another_method_is_405_with_the_allowed_methods() {
    with_every_set(rows::another_method_is_405_with_the_allowed_methods);
}

#[test]
fn another_path_is_404_with_the_right_one() {
    with_every_set(rows::another_path_is_404_with_the_right_one);
}
