use proptest::prelude::*;

use super::simulation::{Case, Outcome, run};
use super::*;

const MS: Duration = Duration::from_millis(1);
const SIZE: usize = 1 << 20;

/// Not a byte so far.
fn silent(elapsed: Duration) -> Seen {
    Seen { elapsed, answered: false, landed: 0, quiet: elapsed, splits: true }
}

/// The body comes, evenly.
fn under_way(elapsed: Duration, landed: usize) -> Seen {
    Seen { elapsed, answered: true, landed, quiet: Duration::ZERO, splits: true }
}

fn served(tails: &mut Tails, watch: Watch, took: Duration, first_byte: Duration) {
    let bytes = watch.bytes();
    tails.end(watch, bytes, Some(took));
    tails.sample(bytes, took, first_byte);
}

/// After `count` requests of `SIZE` bytes that took 80 to 120 ms, the first byte 20 to 30.
fn after(count: u64) -> Tails {
    let mut tails = Tails::new(Hedge::default());
    for id in 0..count {
        let watch = tails.begin(id, SIZE);
        served(&mut tails, watch, MS * (80 + id as u32 * 7 % 41), MS * (20 + id as u32 * 3 % 11));
    }
    tails
}

/// Looks at a silent request until something is done about it; says what, and when.
fn await_verdict(tails: &mut Tails, watch: &mut Watch) -> (Look, Duration) {
    let mut elapsed = Duration::ZERO;
    while elapsed < Duration::from_secs(30) {
        match tails.look(watch, silent(elapsed)) {
            Look::Wait(wait) => {
                assert!(wait >= LOOK_MIN && wait <= LOOK_MAX, "{wait:?}");
                elapsed += wait;
            }
            done => return (done, elapsed),
        }
    }
    (Look::Wait(Duration::MAX), elapsed)
}

fn is_hedge(verdict: (Look, Duration)) -> bool {
    matches!(verdict.0, Look::Hedge { .. })
}

#[test]
fn a_silent_request_is_asked_again_when_it_is_late() {
    let mut tails = after(200);
    let mut watch = tails.begin(1000, SIZE);
    let (done, elapsed) = await_verdict(&mut tails, &mut watch);
    // One and a half times the slowest of nearly all first bytes, 30 ms, the floor, and a beat.
    assert_eq!(done, Look::Hedge { parts: PARTS_MAX });
    assert!(elapsed >= MS * 60 && elapsed < MS * 80, "{elapsed:?}");
    assert!(matches!(tails.look(&mut watch, silent(elapsed * 2)), Look::Wait(_)), "once");
}

#[test]
fn a_body_is_late_by_its_pace() {
    let mut tails = after(200);
    let deadline = tails.begin(0, SIZE);
    let deadline = tails.usual(&deadline).unwrap().deadline(SIZE);
    assert!(deadline > MS * 200 && deadline < MS * 300, "{deadline:?}");
    let mut look = |elapsed, landed| {
        let mut watch = tails.begin(1000, SIZE);
        let first = tails.look(&mut watch, under_way(elapsed, landed));
        let done = match first {
            Look::Wait(_) => tails.look(&mut watch, under_way(elapsed + MS * 50, landed)),
            done => done,
        };
        tails.end(watch, 0, None);
        done
    };
    assert!(matches!(look(MS * 100, 1), Look::Wait(_)), "what is seen lags behind");
    assert!(matches!(look(MS * 200, SIZE - 1), Look::Wait(_)));
    assert_eq!(look(MS * 300, SIZE / 8), Look::Hedge { parts: PARTS_MAX });
    assert!(
        matches!(look(MS * 300, SIZE - SIZE / 20), Look::Wait(_)),
        "the rest will be here sooner than a second answer"
    );
}

#[test]
fn short_requests_have_short_deadlines_and_long_ones_long() {
    let mut tails = after(200);
    let mut deadline = |bytes| {
        let watch = tails.begin(1000, bytes);
        tails.usual(&watch).unwrap().deadline(bytes)
    };
    let (short, long) = (deadline(1000), deadline(4 * SIZE));
    assert!(short < MS * 80 && long > MS * 700, "{short:?} {long:?}");
}

#[test]
fn too_few_are_no_measure() {
    let mut tails = after(SAMPLES_MIN as u64 - 1);
    let mut watch = tails.begin(1000, SIZE);
    assert_eq!(tails.look(&mut watch, silent(Duration::from_secs(60))), Look::Wait(LOOK_MAX));
    assert_eq!(tails.look(&mut watch, silent(MS)), Look::Wait(LOOK_BLIND));
    // Enough of them, but many more began before: those that ended are the fast ones.
    let mut tails = after(40);
    let elders: Vec<_> = (100..140).map(|id| tails.begin(id, SIZE)).collect();
    let mut watch = tails.begin(1000, SIZE);
    assert_eq!(tails.look(&mut watch, silent(MS)), Look::Wait(LOOK_BLIND));
    for elder in elders {
        served(&mut tails, elder, MS * 100, MS * 20);
    }
    assert!(is_hedge(await_verdict(&mut tails, &mut watch)));
}

#[test]
fn when_everything_is_slow_nothing_is_asked_twice() {
    let mut tails = after(200);
    let mut watches: Vec<_> = (1000..1064).map(|id| tails.begin(id, SIZE)).collect();
    for tick in 1..2000 {
        for watch in &mut watches {
            let look = tails.look(watch, silent(LOOK_MIN * tick));
            assert!(matches!(look, Look::Wait(_)), "{look:?}");
        }
    }
    // They end late, all of them: the next ones are measured by that.
    for watch in watches {
        served(&mut tails, watch, Duration::from_secs(10), Duration::from_secs(9));
    }
    let mut watch = tails.begin(2000, SIZE);
    assert!(matches!(tails.look(&mut watch, silent(Duration::from_secs(5))), Look::Wait(_)));
    // As soon as things are as they were, the memory of it fades.
    for id in 3000..3400 {
        let watch = tails.begin(id, SIZE);
        served(&mut tails, watch, MS * 100, MS * 25);
    }
    assert_eq!(tails.late_in_flight, 0);
    assert!(is_hedge(await_verdict(&mut tails, &mut watch)));
}

#[test]
fn what_is_asked_twice_is_shared_by_many() {
    let tails = after(200);
    assert_eq!(tails.parts(SIZE as u64, true), PARTS_MAX);
    assert_eq!(tails.parts(3 * PART_BYTES_MIN + 1, true), 3);
    assert_eq!(tails.parts(1, true), 1);
    assert_eq!(tails.parts(SIZE as u64, false), 1, "bytes of unknown versions do not mix");
    let mut tails = after(200);
    tails.racing = CONNECTIONS_MAX - 3;
    assert_eq!(tails.parts(SIZE as u64, true), 3, "no more connections");
}

/// More late ones at a time than are bad luck, unless it is seen that the store serves others meanwhile.
#[test]
fn a_late_one_whose_second_request_is_answered_no_longer_counts() {
    let mut tails = after(200);
    let mut watches: Vec<_> = (1000..1008).map(|id| tails.begin(id, SIZE)).collect();
    let late = MS * 70;
    let hedged = |tails: &mut Tails, watch: &mut Watch| {
        tails.look(watch, silent(late));
        is_hedge((tails.look(watch, silent(late + MS * 20)), late))
    };
    assert!(hedged(&mut tails, &mut watches[0]));
    assert!(!hedged(&mut tails, &mut watches[1]), "two of eight");
    tails.answered(&mut watches[0]);
    assert!(hedged(&mut tails, &mut watches[1]));
    assert_eq!(tails.late_in_flight, 1);
}

#[test]
fn a_store_that_refuses_a_second_request_is_sent_none_for_a_while() {
    let mut tails = after(200);
    tails.refused();
    let mut watch = tails.begin(1000, SIZE);
    assert!(!is_hedge(await_verdict(&mut tails, &mut watch)));
    for id in 2000..2000 + u64::from(u64::BITS - RECENT_LATE_MAX) {
        assert!(!tails.is_calm());
        let watch = tails.begin(id, SIZE);
        served(&mut tails, watch, MS * 100, MS * 25);
    }
    assert!(is_hedge(await_verdict(&mut tails, &mut watch)));
}

#[test]
fn silence_while_others_are_served_is_given_up() {
    let mut tails = after(200);
    tails.hedge = Hedge::off();
    let mut dead = tails.begin(1000, SIZE);
    assert!(matches!(tails.look(&mut dead, silent(SILENCE_MIN * 5)), Look::Wait(_)), "nobody else was served");
    for id in 1001..1001 + SERVED_MIN {
        let watch = tails.begin(id, SIZE);
        served(&mut tails, watch, MS * 100, MS * 25);
    }
    assert!(matches!(tails.look(&mut dead, silent(SILENCE_MIN / 2)), Look::Wait(_)), "too soon");
    assert_eq!(tails.look(&mut dead, silent(SILENCE_MIN)), Look::GiveUp);
    assert!(matches!(tails.look(&mut dead, under_way(MS * 900, 1)), Look::Wait(_)), "it speaks");
}

#[test]
fn what_is_needed_last_leaves_half_of_the_budget() {
    let mut tails = after(200);
    let elders: Vec<_> = (1000..1000 + URGENT as u64).map(|id| tails.begin(id, 1)).collect();
    let mut twice = 0;
    for id in 2000.. {
        let mut watch = tails.begin(id, SIZE);
        let verdict = await_verdict(&mut tails, &mut watch);
        served(&mut tails, watch, MS * 100, MS * 25);
        if !is_hedge(verdict) {
            break;
        }
        twice += SIZE as u64;
    }
    let budget = Hedge::default().budget(tails.delivered, BURST_BYTES);
    assert!(twice <= budget / 2 && twice + SIZE as u64 > budget / 2 - SIZE as u64, "{twice} of {budget}");
    drop(elders);
    let mut urgent = tails.begin(0, SIZE);
    assert!(is_hedge(await_verdict(&mut tails, &mut urgent)));
}

#[test]
fn the_floor_of_rates_follows_what_is_usual() {
    let mut tails = after(200);
    let watch = tails.begin(1000, SIZE);
    assert_eq!(tails.rate_floor(&watch, 16 << 10), 16 << 10);
    // 1 MiB in some 75 ms are 14 MB/s.
    let floor = tails.rate_floor(&watch, u64::MAX);
    assert!((2_000_000..6_000_000).contains(&floor), "{floor}");
    assert_eq!(Tails::new(Hedge::off()).rate_floor(&watch, 7), 7);
}

/// What happens to a request in a random history.
#[derive(Clone, Debug)]
enum Event {
    Begin {
        bytes: usize,
    },
    /// The request at this place in the list of those in flight goes on in silence for so long.
    Wait {
        which: usize,
        ms: u32,
    },
    End {
        which: usize,
        ms: u32,
        ok: bool,
    },
    Overtaken {
        which: usize,
        twice: u64,
    },
    /// A part of a second request is late in its turn, or all are answered.
    Again {
        which: usize,
        bytes: u64,
    },
    Answered {
        which: usize,
    },
    Refused,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1usize..4 * SIZE).prop_map(|bytes| Event::Begin { bytes }),
        3 => (any::<usize>(), 0u32..3000).prop_map(|(which, ms)| Event::Wait { which, ms }),
        2 => (any::<usize>(), 1u32..200, prop::bool::weighted(0.9)).prop_map(|(which, ms, ok)| Event::End { which, ms, ok }),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(which, twice)| Event::Overtaken { which, twice }),
        1 => (any::<usize>(), 1..SIZE as u64).prop_map(|(which, bytes)| Event::Again { which, bytes }),
        1 => any::<usize>().prop_map(|which| Event::Answered { which }),
        1 => Just(Event::Refused),
    ]
}

proptest! {
    /// Whatever happens: no more is asked for twice than is allowed, and the books balance.
    #[test]
    fn the_budget_is_never_exceeded(events in prop::collection::vec(event(), 1..600), per_mille in 0u32..100) {
        let mut tails = after(60);
        tails.hedge = Hedge::per_mille(per_mille);
        let mut in_flight: Vec<(Watch, Option<u64>)> = Vec::new();
        let mut next = 1000;
        for event in events {
            let count = in_flight.len().max(1);
            match event {
                Event::Begin { bytes } => {
                    in_flight.push((tails.begin(next, bytes), None));
                    next += 1;
                }
                Event::Wait { which, ms } => {
                    if let Some((watch, hedge)) = in_flight.get_mut(which % count) {
                        let before = tails.asked_twice;
                        if is_hedge((tails.look(watch, silent(MS * ms)), MS)) {
                            let reserved = tails.asked_twice - before;
                            prop_assert!(hedge.replace(reserved).is_none() && reserved == watch.bytes as u64);
                        }
                    }
                }
                Event::End { which, ms, ok } => {
                    if which % count < in_flight.len() {
                        let (watch, _) = in_flight.swap_remove(which % count);
                        let bytes = watch.bytes();
                        tails.end(watch, bytes, ok.then_some(MS * ms));
                        tails.sample(bytes, MS * ms, MS * ms / 4);
                    }
                }
                Event::Again { which, bytes } => {
                    if let Some((watch, Some(reserved))) = in_flight.get_mut(which % count) {
                        *reserved += if tails.reserve(watch, bytes) { bytes } else { 0 };
                    }
                }
                Event::Answered { which } => {
                    if let Some((watch, _)) = in_flight.get_mut(which % count) {
                        tails.answered(watch);
                    }
                }
                Event::Refused => tails.refused(),
                Event::Overtaken { which, twice } => {
                    if let Some((_, hedge)) = in_flight.get_mut(which % count)
                        && let Some(reserved) = hedge.take()
                    {
                        tails.overtaken(reserved, twice);
                    }
                }
            }
            let budget = Hedge::per_mille(per_mille).budget(tails.delivered, BURST_BYTES);
            prop_assert!(tails.asked_twice <= budget, "{} of {budget}", tails.asked_twice);
            prop_assert_eq!(tails.late_in_flight, in_flight.iter().filter(|(watch, _)| watch.is_late).count());
            prop_assert_eq!(tails.in_flight.len(), in_flight.len());
            prop_assert_eq!(tails.racing, in_flight.iter().map(|(watch, _)| watch.hedged).sum::<usize>());
            prop_assert!(tails.samples.len() <= SAMPLES_MAX);
        }
    }
}

const LINK: u64 = 125_000_000;

/// A place of the benchmark's: round-trip time, share of the link's rate that is consumed; and what came of it, over all seeds.
struct Place {
    rtt_ms: u32,
    demand: f64,
    /// 99th percentiles of the time from one batch to the next, in ms: without slow requests, with one in a hundred, and that without second requests.
    clean: f64,
    slow: f64,
    bare: f64,
    extra: f64,
    struck: usize,
}

impl Place {
    fn simulate(rtt_ms: u32, demand: f64, seeds: u64) -> Self {
        let pace = (demand < 1.0).then_some(demand * LINK as f64);
        let clean =
            Case { link: LINK, rtt: MS * rtt_ms, pace, slow: 0.0, hedge: Hedge::default(), samples: 12_496, seed: 0 };
        let slow = Case { slow: 0.01, ..clean };
        let bare = Case { hedge: Hedge::off(), ..slow };
        let epochs = |case: Case| (0..seeds).map(|seed| run(Case { seed, ..case })).collect::<Vec<_>>();
        let with = epochs(slow);
        let place = Place {
            rtt_ms,
            demand,
            clean: p99_ms(&epochs(clean)),
            slow: p99_ms(&with),
            bare: p99_ms(&epochs(bare)),
            extra: with.iter().map(|outcome| outcome.extra).fold(0.0, f64::max),
            struck: with.iter().map(|outcome| outcome.struck).sum(),
        };
        place.print();
        place
    }

    fn ratio(&self) -> f64 {
        self.slow / self.clean
    }

    fn print(&self) {
        let Place { rtt_ms, demand, clean, slow, bare, extra, struck } = self;
        println!(
            "| {:.0} % | {rtt_ms} ms | {clean:.0} | {slow:.0} | {:.2} | {bare:.0} | {:.2} % | {struck} |",
            100.0 * demand,
            self.ratio(),
            100.0 * extra
        );
    }
}

fn p99_ms(outcomes: &[Outcome]) -> f64 {
    let mut gaps: Vec<f64> = outcomes.iter().flat_map(|outcome| outcome.gaps.iter().copied()).collect();
    1e3 * quantile(&mut gaps, 0.99)
}

/// One request in a hundred takes ten times as long: the promise about batches, without a machine's noise.
#[test]
fn slow_requests_are_hardly_felt() {
    for (rtt_ms, demand) in [(15, 1.0), (30, 1.0), (15, 0.6), (30, 0.6)] {
        let place = Place::simulate(rtt_ms, demand, 4);
        assert!(place.struck >= 60, "{}", place.struck);
        assert!(place.ratio() <= 1.5, "{rtt_ms} ms, {demand}: {:.2}", place.ratio());
        assert!(place.extra > 0.0 && place.extra <= 0.02, "{rtt_ms} ms, {demand}: {:.4}", place.extra);
        assert!(demand < 1.0 || place.bare > 2.0 * place.clean, "{rtt_ms} ms: {} without, {}", place.bare, place.clean);
    }
}

#[test]
#[ignore = "a minute: the table of docs/design/0007"]
fn slow_requests_in_a_table() {
    for (rtt_ms, demand) in [(15, 1.0), (30, 1.0), (15, 0.6), (30, 0.6)] {
        Place::simulate(rtt_ms, demand, 24);
    }
}
