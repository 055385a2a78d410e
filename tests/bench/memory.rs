//! The floor of a list: the same stack, with an answer that lies ready in memory. A process of its own, as the portal is.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use pbx_control_portal::api::guard::Guard;
use pbx_control_portal::api::{self, server};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::lab;

/// The argument that makes this program such a server.
pub const ARGUMENT: &str = "memory";

pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Answers `GET /users` with what is in the file.
    pub fn start(file: &Path) -> Self {
        let this = std::env::current_exe().expect("this program");
        let mut command = Command::new(this);
        // It logs its requests to a file, as the portal does.
        let log = File::create(file.with_extension("log")).expect("make a log");
        let mut child =
            command.arg(ARGUMENT).arg(file).stdout(Stdio::piped()).stderr(log).spawn().expect("start this program");
        lab::guard(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("its address");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        lab::release(self.child.id());
    }
}

/// Is the server until it is killed.
pub fn serve(file: &str) {
    let body = Bytes::from(fs::read(file).expect("the answer"));
    let router = Router::new().route(
        "/users",
        get(move || {
            let body = body.clone();
            async move { ([(CONTENT_TYPE, "application/json")], body) }
        }),
    );
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr).init();
    let router = api::layered(router, Guard::Open { loopback: true });
    // As the service runs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("an event loop").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        println!("{}", listener.local_addr().expect("its address"));
        server::serve(listener, router, CancellationToken::new()).await;
    });
}
