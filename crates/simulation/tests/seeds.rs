//! Many seeds hold, the same seed does the same, and every broken promise is noticed.

use vaquero_simulation::{Counts, Sabotage, run};

/// `VAQUERO_TEST_SEEDS` for more than CI has time for.
fn seeds() -> u64 {
    let set = std::env::var("VAQUERO_TEST_SEEDS").ok();
    set.and_then(|count| count.parse().ok()).unwrap_or(300)
}

#[test]
fn many_seeds_hold() {
    let mut all = Counts::default();
    for seed in 1..=seeds() {
        let report = run(seed, Sabotage::None);
        assert!(
            report.broken.is_empty(),
            "{:#?}\nsee it again: cargo run -p vaquero-simulation -- --seed {seed}",
            report.broken
        );
        all.calls += report.counts.calls;
        all.accepted += report.counts.accepted;
        all.troubles += report.counts.troubles;
    }
    assert!(all.calls > 0 && all.accepted > 0 && all.troubles > 0, "{all:?}");
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in [1, 7, 42] {
        let (one, two) = (run(seed, Sabotage::None), run(seed, Sabotage::None));
        for (place, (one, two)) in one.trace.iter().zip(&two.trace).enumerate() {
            assert_eq!(one, two, "seed {seed}, line {place}");
        }
        assert_eq!(one, two, "seed {seed}");
    }
}

#[test]
fn every_broken_promise_is_noticed() {
    for (name, sabotage) in Sabotage::ALL {
        let noticed =
            (1..=60).filter(|seed| !run(*seed, sabotage).broken.is_empty()).take(5).count();
        assert!(noticed == 5, "{name}: noticed by {noticed} of 60 seeds");
    }
}
