//! A fork in the middle: what belongs to the parent is an error in the child, and dropping it there does no harm to either.
#![cfg(feature = "cuda")]

#[path = "fixture/shards.rs"]
mod shards;

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use farfeed::device::{Device, RawStream};
use farfeed::loader::Batch;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Error, Field, Kind, Loader, Result};
use farfeed_driver_double::{Double, Live, in_a_child, on_gpu};
use shards::{WebDataset, webdataset};

const PATIENCE: Duration = Duration::from_secs(30);

fn loader(dataset: &WebDataset, device: &Device) -> Loader {
    Loader::builder(dataset.pattern("memory:"))
        .store(dataset.memory())
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(8)
        .shuffle(Shuffle::window(16).seed(1))
        .host_memory(ByteSize::mib(32))
        .patience(PATIENCE)
        .device(device.clone())
        .build()
        .expect("it builds")
}

/// What a call in a child said: it must be this kind of error, with advice. A text, because it goes through a pipe.
fn said<T>(call: &str, result: Result<T>) -> String {
    match result {
        Ok(_) => format!("{call} worked\n"),
        Err(error) => said_of(call, &error),
    }
}

fn said_of(call: &str, error: &Error) -> String {
    match (error.kind(), error.next_step()) {
        (Kind::Unsupported, Some(_)) if error.to_string().contains("fork") => String::new(),
        _ => format!("{call}: {error}\n"),
    }
}

/// Everything that a child can ask of what is its parent's, and letting go of it.
fn use_up(loader: Loader, batches: [Batch; 3], device: &Device) -> String {
    let [first, second, third] = batches;
    let mut complaints = String::new();
    complaints += &said("next", loader.epoch(0).next().unwrap_or_else(|| Err(Error::new(Kind::Io, "no more"))));
    {
        let future = std::pin::pin!(loader.next_batch());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            Poll::Ready(next) => complaints += &said("next_batch", next),
            Poll::Pending => complaints += "next_batch waits\n",
        }
    }
    loader.seek(3);
    if !device.is_host() {
        complaints += &said("wait_on", first.wait_on(RawStream::LEGACY_DEFAULT));
        complaints += &said("synchronize", first.synchronize());
        complaints += &said("values", first.values("jpg"));
        complaints += &said("stream", device.stream());
        complaints += &said("cuda", Device::cuda(device.ordinal().unwrap_or_default()));
    }
    complaints += &said("release", first.release(RawStream::LEGACY_DEFAULT));
    drop(second);
    drop(loader);
    drop(third);
    format!("{complaints}done")
}

fn a_fork_in_the_middle(device: Device) {
    let dataset = webdataset(1, 200, 2_000);
    let loader = loader(&dataset, &device);
    let mut epoch = loader.epoch(0);
    let batches = [(); 3].map(|()| epoch.next().expect("there are more").expect("a batch"));
    let mut theirs = Some((loader, batches));
    // In the parent `use_up` is never called: what is moved into it is a copy that the fork made.
    let answer = in_a_child(PATIENCE, || match theirs.take() {
        Some((loader, batches)) => use_up(loader, batches, &device),
        None => "nothing was left to use".into(),
    });
    assert_eq!(answer.as_deref(), Ok("done"));
    // The parent goes on where it was.
    let (loader, batches) = theirs.take().expect("the child took its own");
    let last = batches[2].index();
    drop(batches);
    for batch in loader.epoch(0).take(10) {
        let batch = batch.expect("a batch");
        for (row, value) in batch.values("jpg").expect("they can be read").iter().enumerate() {
            assert!(value.as_ref() == dataset.samples[batch.ids()[row] as usize].1.as_slice());
        }
    }
    assert_eq!(loader.state().epoch, 0);
    assert!(loader.epoch(0).next().expect("there are more").expect("a batch").index() > last);
}

#[test]
fn a_child_is_told_and_does_no_harm() {
    let double = (!on_gpu()).then(|| Double::load().device(0));
    a_fork_in_the_middle(Device::cuda(0).expect("a device"));
    let Some(double) = double else { return };
    double.drain();
    assert_eq!((double.violations().as_str(), double.live()), ("", Live::default()));
    assert_eq!(Double::load().calls_in_children(), 0, "no driver call was tried in the child");
}

#[test]
fn on_the_host_device_as_well() {
    a_fork_in_the_middle(Device::host());
}

/// A child that was forked before anything was opened has its own.
#[test]
fn what_is_made_in_the_child_is_the_childs() {
    let dataset = webdataset(1, 40, 2_000);
    let answer = in_a_child(PATIENCE, || {
        let loader = loader(&dataset, &Device::host());
        let batches = loader.epoch(0).filter(|batch| batch.is_ok()).count();
        format!("{batches} batches")
    });
    assert_eq!(answer.as_deref(), Ok("5 batches"));
}
