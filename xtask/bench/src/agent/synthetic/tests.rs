//! Of the generator.
