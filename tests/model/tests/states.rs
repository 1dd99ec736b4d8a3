//! Pages and slots in every order of steps: see the library that this tests.

use farfeed_model::{pages, slots};

#[test]
fn a_page_that_comes_back_is_not_slept_through() {
    pages::a_page_that_comes_back_is_not_slept_through();
}

#[test]
fn the_watcher_wakes_who_found_no_page() {
    pages::the_watcher_wakes_who_found_no_page();
}

#[test]
fn no_page_is_given_twice() {
    pages::no_page_is_given_twice();
}

#[test]
fn what_batches_share_is_freed_once_and_by_the_last() {
    pages::what_batches_share_is_freed_once_and_by_the_last();
}

#[test]
fn a_page_may_outlive_its_slab() {
    pages::a_page_may_outlive_its_slab();
}

#[test]
#[should_panic(expected = "deadlock")]
fn waking_too_early_is_found() {
    pages::waking_too_early_is_found();
}

#[test]
fn every_slot_comes_home() {
    slots::every_slot_comes_home();
}

#[test]
fn a_slot_that_is_lost_is_not_waited_for() {
    slots::a_slot_that_is_lost_is_not_waited_for();
}

#[test]
fn a_slot_may_outlive_its_engine() {
    slots::a_slot_may_outlive_its_engine();
}
