//! Images as numbered steps: a test may have us die before each of them ([`crust_process::steps`]).

use crust_image::sink::SinkWriter;
use crust_image::{ImageDir, ImageSink, Kind};
use crust_process::steps::step;
use std::fs::File;

/// The images directory.
pub struct Stepped<'d>(pub &'d ImageDir);

impl ImageSink for Stepped<'_> {
    fn create(&self, kind: Kind, id: Option<u64>) -> crust_image::Result<SinkWriter> {
        step();
        self.0.create(kind, id)
    }

    fn create_raw_file(&self, kind: Kind, id: Option<u64>) -> crust_image::Result<File> {
        step();
        self.0.create_raw_file(kind, id)
    }
}
