//! Why a plan cannot be made: a bad value in an image, or something of this host or of this
//! version of Crust that does not carry what the images ask for. All of them are told together,
//! before anything is touched.

use super::step::Origin;
use crust_cli::code::Code;
use std::fmt;

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The image and entry, and what it is about.
    pub origin: Origin,
    /// What kind of reason.
    pub code: Code,
    /// What is wrong, with the field and its value.
    pub why: String,
    /// What the user may try, as a phrase; empty if there is nothing.
    pub hint: String,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(origin: Origin, why: impl Into<String>) -> Refusal {
        Refusal {
            origin,
            code: Code::Plan,
            why: why.into(),
            hint: String::new(),
        }
    }

    /// The same of another kind than a plan that cannot be made.
    pub fn kind(self, code: Code) -> Refusal {
        Refusal { code, ..self }
    }

    /// The same with something to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.why)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}
