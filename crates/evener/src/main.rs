//! tmp
mod config;
fn main() {
    println!("{:?}", config::load(std::path::Path::new("x")));
}
