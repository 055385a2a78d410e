//! `pbx-portal`.

fn main() -> std::process::ExitCode {
    pbx_control_portal::run()
}
