//! Slots: filled, handed over, let go of on other threads, and filled again.

use std::sync::Arc;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use crate::Bell;
use crate::device::home::{Home, Wake};
use crate::error::{Error, Kind};

/// What an engine would fill; it counts how many there are.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn new(alive: &Arc<AtomicUsize>) -> Slot {
        alive.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(alive))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Engine {
    home: Arc<Home<Slot>>,
    arrivals: crossbeam_channel::Receiver<Slot>,
    bell: Bell,
    alive: Arc<AtomicUsize>,
}

impl Engine {
    fn new(slots: usize) -> Engine {
        let bell = Bell::default();
        let rings = bell.clone();
        let wake: Wake = Arc::new(move || rings.ring());
        let (home, arrivals) = Home::new(slots, wake);
        Engine { home, arrivals, bell, alive: Arc::new(AtomicUsize::new(0)) }
    }

    /// Hands a slot to a consumer, who lets go of it at some time.
    fn deliver(&self) -> thread::JoinHandle<()> {
        let (slot, home) = (Slot::new(&self.alive), Arc::clone(&self.home));
        thread::spawn(move || home.take_back(slot))
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }
}

/// The engine sleeps until a slot is back; two consumers let go at once. Both arrive, and no wake-up is lost.
pub fn every_slot_comes_home() {
    loom::model(|| {
        let engine = Engine::new(2);
        let consumers = [engine.deliver(), engine.deliver()];
        let mut home = Vec::new();
        while home.len() < 2 {
            match engine.arrivals.try_recv() {
                Ok(slot) => home.push(slot),
                Err(_) => engine.bell.wait(),
            }
        }
        for consumer in consumers {
            assert!(consumer.join().is_ok());
        }
        assert_eq!((home.len(), engine.alive()), (2, 2));
        drop(home);
        assert_eq!(engine.alive(), 0);
    });
}

/// A slot that could not be given back properly: the engine that sleeps for it is told why.
pub fn a_slot_that_is_lost_is_not_waited_for() {
    loom::model(|| {
        let engine = Engine::new(1);
        let slot = Slot::new(&engine.alive);
        let home = Arc::clone(&engine.home);
        let consumer = thread::spawn(move || {
            home.lose(&Error::new(Kind::Device, "the stream was destroyed"));
            drop(slot);
        });
        let told = loop {
            if let Err(error) = engine.home.loss() {
                break error.to_string();
            }
            engine.bell.wait();
        };
        assert!(told.contains("the stream was destroyed"), "{told}");
        assert!(consumer.join().is_ok());
        assert_eq!(engine.alive(), 0);
    });
}

/// The engine ends while two consumers let go: each slot is freed once, by whoever has it last.
pub fn a_slot_may_outlive_its_engine() {
    loom::model(|| {
        let engine = Engine::new(2);
        let consumers = [engine.deliver(), engine.deliver()];
        let alive = Arc::clone(&engine.alive);
        drop(engine);
        for consumer in consumers {
            assert!(consumer.join().is_ok());
        }
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    });
}
