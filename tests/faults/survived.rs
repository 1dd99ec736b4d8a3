//! Trouble that an epoch survives: every byte is right, and nothing is left.

use std::time::{Duration, Instant};

use farfeed::ByteSize;
use farfeed::emulate::{Cut, Effect, Faults};

use crate::far::{AT_ONCE, DATASET, EVER, Far, Front, cut, on_shards, reads_all, survives};
use crate::leftovers::Before;

pub(crate) fn a_storm_of_503_that_ends(front: Front) {
    let storm = on_shards(Effect::unavailable()).times(30);
    let stats = survives(front, |server| server.set_faults(storm).unwrap());
    assert!(stats.retries >= 30, "{stats}");
    // With a time to wait: nobody asks again before.
    let began = Instant::now();
    let busy = on_shards(Effect::Status { status: 429, retry_after: Some(Duration::from_secs(1)) }).times(8);
    let stats = survives(front, |server| server.set_faults(busy).unwrap());
    assert!(stats.retries >= 8 && began.elapsed() >= Duration::from_secs(1), "{stats}");
}

pub(crate) fn half_of_the_requests_fail_in_one_way_or_another(front: Front) {
    for seed in 1..4 {
        let faults = Faults::none()
            .with(on_shards(Effect::unavailable()).probability(0.2))
            .with(on_shards(Effect::Status { status: 500, retry_after: None }).probability(0.1))
            .with(on_shards(cut(0, Cut::Reset)).probability(0.1))
            .with(on_shards(cut(9999, Cut::Close)).probability(0.2))
            .with(on_shards(Effect::Delay(Duration::from_millis(20))).probability(0.2))
            .seed(seed);
        let stats = survives(front, |server| server.set_faults(faults).unwrap());
        assert!(stats.retries > 5, "{stats}");
    }
}

pub(crate) fn bodies_cut_anywhere_go_on_where_they_were_cut(front: Front) {
    for how in [Cut::Reset, Cut::Close] {
        let mut faults = Faults::none();
        for (nth, after) in [1, 2, 511, 4096, 65_535, 65_536, 77_777, 150_000].into_iter().enumerate() {
            // Regularly, each at its turn, so that some read is cut several times.
            faults = faults.with(on_shards(cut(after, how)).skip(nth as u64).every(9).times(12));
        }
        let stats = survives(front, |server| server.set_faults(faults).unwrap());
        assert!(stats.retries >= 8, "{stats}");
        let most = DATASET.bytes() * 2;
        assert!(stats.fetch.bytes < most, "{} bytes were fetched of {}", stats.fetch.bytes, DATASET.bytes());
    }
    // No body is ever whole: not one answer tells the version of all that it should have brought.
    let stats = survives(front, |server| server.set_faults(on_shards(cut(20_000, Cut::Close))).unwrap());
    assert!(stats.retries as usize > DATASET.bytes() as usize / 20_000 / 2, "{stats}");
}

pub(crate) fn a_stall_in_mid_body_is_cut_off_and_gone_on_from(front: Front) {
    let pause = EVER;
    let faults = Faults::none()
        .with(on_shards(Effect::Stall { after: 20_000, pause }).every(5).times(4))
        .with(on_shards(Effect::Stall { after: 0, pause }).skip(3).every(7).times(2));
    let began = Instant::now();
    let stats = survives(front, |server| server.set_faults(faults).unwrap());
    assert!(stats.retries >= 4 && began.elapsed() < Duration::from_secs(20), "{stats}");
}

pub(crate) fn a_slow_drip_is_slow_and_no_more(front: Front) {
    let drip = on_shards(Effect::Drip { bytes_s: 300_000 }).every(4).times(5);
    let stats = survives(front, |server| server.set_faults(drip).unwrap());
    assert_eq!(stats.retries, 0, "bytes came all the time: {stats}");
    // Below the floor of rates the rest is asked for on another connection, by whoever is first: the second request or the retry.
    let drip = on_shards(Effect::Drip { bytes_s: 500 }).every(4).times(5);
    let began = Instant::now();
    let stats = survives(front, |server| server.set_faults(drip).unwrap());
    assert!(stats.retries + stats.hedges_won > 0 && began.elapsed() < Duration::from_secs(10), "{stats}");
}

pub(crate) fn a_server_that_is_away_for_two_seconds(front: Front) {
    let stats = survives(front, |server| {
        std::thread::sleep(Duration::from_millis(20));
        server.refuse_for(Duration::from_secs(2)).unwrap();
    });
    assert!(stats.retries > 0, "{stats}");
    let stats = survives(front, |server| server.silence_for(Duration::from_millis(1200)));
    assert!(stats.retries > 0, "{stats}");
}

pub(crate) fn half_of_the_servers_die(front: Front) {
    let before = Before::look();
    let far = Far::farm(front);
    let loader = far.farm_options().in_flight(ByteSize::bytes(1)).build().unwrap();
    let first = loader.epoch(0).next().unwrap().unwrap();
    DATASET.check(&first);
    let addresses = far.server.addresses();
    addresses[..2].iter().for_each(|address| far.server.kill(*address).unwrap());
    let batches = loader.epoch(0).map(|batch| DATASET.check(&batch.unwrap())).count();
    assert_eq!((first.index(), batches), (0, 9));
    let slab = loader.slab().clone();
    drop((first, loader, far));
    before.check_after(&slab, AT_ONCE);
    drop(before);
    // They are dead from the start for whoever comes now.
    let before = Before::look();
    let far = Far::farm(front);
    let addresses = far.server.addresses();
    addresses[..2].iter().for_each(|address| far.server.kill(*address).unwrap());
    let loader = far.farm_options().build().unwrap();
    reads_all(before, far, loader);
}
