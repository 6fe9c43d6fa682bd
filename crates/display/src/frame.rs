//! A picture.

use std::io::{self, Write};

/// A picture of eight bits for each of red, green and blue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Frame {
    /// Width in dots.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in lines.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Red, green and blue of each dot, line by line from the upper left: three bytes a dot, without gaps.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The colour of a dot; `None` outside of the picture.
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.width {
            return None;
        }
        let at = (y as usize * self.width as usize + x as usize) * 3;
        self.pixels.get(at..)?.first_chunk().copied()
    }

    /// Makes it an empty picture that lines are appended to.
    pub(crate) fn start(&mut self, width: u32, height: u32) {
        self.pixels.clear();
        self.pixels.reserve(width as usize * height as usize * 3);
        (self.width, self.height) = (width, height);
    }

    /// Appends dots.
    pub(crate) fn push(&mut self, colour: [u8; 3]) {
        self.pixels.extend_from_slice(&colour);
    }

    /// Appends bytes of dots.
    pub(crate) fn push_bytes(&mut self, bytes: impl Iterator<Item = u8>) {
        self.pixels.extend(bytes);
    }

    /// Makes what is missing black.
    pub(crate) fn finish(&mut self) {
        self.pixels.resize(self.width as usize * self.height as usize * 3, 0);
    }

    /// Writes it as a PNG file: RGB, eight bits.
    ///
    /// # Errors
    /// What `out` returns; a picture without dots.
    pub fn write_png(&self, out: impl Write) -> io::Result<()> {
        let mut encoder = png::Encoder::new(out, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        Ok(writer.finish()?)
    }
}
