//! A server that fails in every way that servers do, reached in every way that there is: either the epoch is right to the byte, or the error
//! is of its kind and comes in time. Afterwards nothing is left: no page, no thread, no descriptor.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

mod far;
mod given_up;
#[path = "../fixture/leftovers.rs"]
mod leftovers;
#[path = "../fixture/shards.rs"]
mod shards;
mod survived;
#[path = "../fixture/terminator.rs"]
mod terminator;

/// Each case once for each front.
macro_rules! matrix {
    ($($room:ident { $($case:ident),+ $(,)? })+) => {
        $($(mod $case {
            use crate::far::Front;

            #[test]
            fn http() {
                crate::$room::$case(Front::Http);
            }

            #[test]
            fn https() {
                crate::$room::$case(Front::Https);
            }

            #[test]
            fn s3() {
                crate::$room::$case(Front::S3);
            }
        })+)+
    };
}

matrix! {
    survived {
        a_storm_of_503_that_ends,
        half_of_the_requests_fail_in_one_way_or_another,
        bodies_cut_anywhere_go_on_where_they_were_cut,
        a_stall_in_mid_body_is_cut_off_and_gone_on_from,
        a_slow_drip_is_slow_and_no_more,
        a_server_that_is_away_for_two_seconds,
        half_of_the_servers_die,
    }
    given_up {
        what_does_not_end_is_given_up_in_time,
        a_consumer_out_of_patience_is_told_what_is_under_way,
        an_outage_that_outlasts_patience_costs_no_batch,
        wrong_answers_are_named,
        a_name_that_is_nowhere,
        trouble_while_the_index_is_read_or_made,
    }
}
