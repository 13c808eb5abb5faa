//! Shared stores on a simulated backend, which delays, reorders and loses what they send and what they are sent, and forgets its
//! past. The head of each module states the property and how it is provoked.

mod cases;
mod engine;
mod hosts;
mod operations;
#[path = "../simulated_disk/random.rs"]
mod random;
mod simulation;
mod truth;
mod watchers;
