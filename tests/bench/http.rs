//! A client that costs little itself: one kept connection, no parser but for the length.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    host: SocketAddr,
}

impl Client {
    pub fn connect(host: SocketAddr) -> Self {
        let stream = TcpStream::connect(host).expect("connect");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, buffer: vec![0; 512 * 1024], host }
    }

    /// All users; gives the body.
    pub fn list(&mut self) -> &[u8] {
        let request = format!("GET /users HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        let (status, body) = self.answer(&request);
        assert_eq!(status, "200");
        body
    }

    pub fn create(&mut self, index: usize) {
        let body = format!(r#"{{"name":"User {index}","email":"user{index}@example.com"}}"#);
        let head = "content-type: application/json";
        let request = format!(
            "POST /users HTTP/1.1\r\nhost: {}\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        let (status, body) = self.answer(&request);
        assert_eq!(status, "201", "{}", String::from_utf8_lossy(body));
    }

    /// The status and the body.
    fn answer(&mut self, request: &str) -> (String, &[u8]) {
        self.stream.write_all(request.as_bytes()).expect("send");
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).expect("an answer");
            assert!(read > 0, "the connection ended");
            filled += read;
            let known = &self.buffer[..filled.min(4096)];
            let Some(end) = known.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&known[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let whole = end + 4 + length.expect("a length");
            if filled >= whole {
                let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
                return (status, &self.buffer[end + 4..whole]);
            }
        }
    }
}
