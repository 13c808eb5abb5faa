//! A store with compress, encrypt, index, tenant and bytes is the same as a map for each client, for every sequence of operations.
//!
//! Provoked with random operations of three clients, whose replies, listings, watches and index are compared with a model: one
//! after the other, so that also the refusals of `bytes` are foretold, and at the same time. Meanwhile keys are rotated, settings
//! and orders change, snapshots are written and the server is killed. After each round the files are compared, also in
//! images at random moments and in restored backups: they contain no plain text, and the index is exact.

mod account;
mod batch;
mod config;
mod files;
mod list;
mod random;
mod session;
mod tenant;
mod world;

use vkog_tests::{Setup, amount, artefacts};

use Disturbance::{Image, Kill, Rotation, Snapshot};
use world::{Disturbance, World};

#[test]
fn five_plugins_together_store_and_return_what_the_model_says() {
    let plugins = artefacts();
    let names = ["vkog-compress", "vkog-encrypt", "vkog-index", "vkog-tenant", "vkog-bytes"];
    let setup = names.iter().fold(Setup::new(), |setup, name| setup.load(plugins.library(name)));
    let mut world = World::new(setup, 18);
    let disturbances: [&[Disturbance]; 6] = [
        &[Rotation],
        &[Image, Kill],
        &[Snapshot, Image, Rotation],
        &[Image, Image],
        &[Rotation, Snapshot, Kill],
        &[Snapshot, Image, Kill],
    ];
    // The operations of each client in a round, and of all rounds.
    let (steps, operations) = (amount(60, 150), amount(3_000, 100_000));
    for round in 0.. {
        world.alone(steps);
        world.settle();
        world.together(steps, disturbances[round % disturbances.len()]);
        world.settle();
        match round % 8 {
            3 => world.change_fields(),
            5 => world.back_up(),
            7 => world.restart(),
            _ => {}
        }
        if world.done.operations >= operations {
            break;
        }
    }
    world.settle();
    world.restart();
    world.settle();
    println!("{:?}, {:?}", world.done, world.round);
}
