//! The picture of a run: fetch, copy, compute and stall as lanes over time.
