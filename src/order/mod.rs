//! Which sample comes when: shuffle, lanes, partition over ranks, resume state.
//!
//! *Takes* the sizes of the blocks in samples, a seed, an epoch, rank and world size, a position. *Gives* slots (block,
//! index in block) lane by lane, and which of them make up batch *k*. *Owns* one permutation of the blocks per
//! epoch: 16 bytes per block, nothing per sample. *Bounded*: a [`LaneCursor`] holds at most one window of its lane.
//! *Fails* with `Topology` where ranks, lanes and state do not fit each other and with `Config` where the dataset, the
//! shuffle and the state do not.
//!
//! Pure: no input or output, no clock, no global state. The order is defined without reference to ranks:
//!
//! 1. Blocks are permuted by (seed, epoch) and laid end to end: one stream of *N* samples.
//! 2. The stream is cut into *L* contiguous lanes; lane *l* is as long as there are global positions *p* < *N* with
//!    *p* mod *L* = *l*, and position *p* of the epoch is position *p* / *L* of lane *p* mod *L*.
//! 3. Within a lane, sample *i* gets the key *i* + *u* × *window*, *u* in [0, 1) drawn from (seed, epoch, lane, *i*), and
//!    samples leave in order of their keys. *window* is the lane's share: the job's window divided by *L*.
//! 4. Rank *r* of *w* serves the lanes *l* with *l* mod *w* = *r*.
//!
//! ```
//! use farfeed::order::{Order, Shuffle};
//!
//! let order = Order::new(vec![100; 50].into(), Shuffle::window(1000).seed(7), 2, None)?;
//! assert_eq!((order.lanes(), order.samples()), (6, 5000));
//! let epoch = order.epoch(0);
//! let whole: Vec<_> = epoch.lane(3, 0).collect();
//! let resumed: Vec<_> = epoch.lane(3, 400).collect(); // one window of work, wherever it starts
//! assert_eq!(whole[400..], resumed[..]);
//! # Ok::<(), farfeed::Error>(())
//! ```

mod epoch;
mod lane;
mod partition;
mod random;
mod shuffle;
mod state;

pub use epoch::{EpochOrder, Order, Slot};
pub use lane::LaneCursor;
pub use partition::{LanePosition, Partition};
pub use shuffle::Shuffle;
pub use state::{ResumePoint, State};
