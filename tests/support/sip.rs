//! The messages of a phone.

use md5::{Digest as _, Md5};

/// A request, ready to be sent with `Phone::send`.
pub struct Request {
    pub method: &'static str,
    pub uri: String,
    /// The values of these headers.
    pub from: String,
    pub to: String,
    pub call_id: String,
    /// Further headers, each with its line end.
    pub headers: String,
    /// Its type, and the text.
    pub body: (&'static str, &'static str),
}

impl Request {
    /// Adds headers, without the last line end; none if there is nothing.
    pub fn add(&mut self, headers: &str) {
        if !headers.is_empty() {
            self.headers += headers;
            self.headers += "\r\n";
        }
    }
}

/// A call that was answered, as one of its two phones sees it.
pub struct Dialog {
    pub target: String,
    pub from: String,
    pub to: String,
    pub call_id: String,
}

impl Dialog {
    /// This call, in a `Replaces` header of the phone that was called.
    pub fn as_replaces(&self) -> String {
        let tag = |value: &str| value.rsplit_once(";tag=").map(|(_, tag)| tag.to_owned()).expect("a tag");
        format!("{};to-tag={};from-tag={}", self.call_id, tag(&self.to), tag(&self.from))
    }
}

/// A session without audio.
pub const SDP: &str =
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n";

/// What a phone adds to the `To` of those who call it.
pub const TAG: &str = ";tag=phone";

/// The end of an answer without a body.
pub const EMPTY: &str = "Content-Length: 0\r\n\r\n";

/// The answer of a phone to a request.
pub fn answer(request: &str, status: &str, more: &str) -> String {
    let mut answer = vec![format!("SIP/2.0 {status}")];
    for line in request.lines().take_while(|line| !line.is_empty()) {
        match line.split_once(':').map(|(name, _)| name) {
            Some("Via" | "From" | "Call-ID" | "CSeq" | "Record-Route") => answer.push(line.to_owned()),
            Some("To") if line.contains(";tag=") => answer.push(line.to_owned()),
            Some("To") => answer.push(format!("{line}{TAG}")),
            _ => {}
        }
    }
    answer.join("\r\n") + "\r\n" + more
}

/// The status of an answer.
pub fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
}

/// The value of a header.
pub fn header<'m>(message: &'m str, name: &str) -> Option<&'m str> {
    message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// A challenge of Asterisk; a phone may answer it again for some seconds.
pub struct Challenge {
    pub realm: String,
    pub nonce: String,
    pub opaque: String,
}

impl Challenge {
    pub fn of(answer: &str) -> Self {
        let field = |name: &str| answer.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let [realm, nonce, opaque] =
            ["realm", "nonce", "opaque"].map(|name| field(name).unwrap_or_default().to_owned());
        Self { realm, nonce, opaque }
    }
}

/// As hex digits.
pub fn md5(text: &str) -> String {
    let digits: Vec<_> = Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}
