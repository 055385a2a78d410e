//! The list of all users, made once for as many requests as it is true for.
//!
//! A list that is answered shows everything that was committed before its request came, by whatever host. So
//!
//! 1. a request waits for its turn: one at a time asks the database;
//! 2. what was found out meanwhile serves it too, if the asking began after it came, or failed after it came;
//! 3. otherwise it asks whether anything was committed since the last list was read ([`Storage::users_unless`]), and only then
//!    are the users read anew.
//!
//! An answer is no older than its request, so nothing has to be told to anybody when a user comes or goes. A client that hangs up
//! ends no question: whoever comes next has the answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::spawn;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::error::ApiError;
use super::users::UserList;
use crate::storage::{DEADLINE, LOOK_AND_TRY_AGAIN, State, Storage, StorageError};

/// For its turn and its own question, a request has this long: the answer comes within the API's 5 seconds.
const PATIENCE: Duration = DEADLINE.saturating_add(Duration::from_millis(250));

/// The list of all users.
#[derive(Debug, Clone)]
pub struct Listing {
    storage: Storage,
    last: Arc<Mutex<Last>>,
}

/// The last list that was answered.
struct Last {
    /// What it shows.
    state: State,
    /// When it was last asked for whether it is true.
    asked: Instant,
    body: Bytes,
    /// When it last could not be asked for, and why.
    failed: Option<(Instant, StorageError)>,
}

/// Without the secrets.
impl std::fmt::Debug for Last {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Last").field("state", &self.state).field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Listing {
    /// Lists what is in `storage`; nothing is read yet.
    #[must_use]
    pub fn new(storage: Storage) -> Self {
        let none = Last { state: State::default(), asked: Instant::now(), body: Bytes::new(), failed: None };
        Self { storage, last: Arc::new(Mutex::new(none)) }
    }

    /// The body of an answer.
    ///
    /// # Errors
    /// [`ApiError::DatabaseUnavailable`].
    pub(super) async fn body(&self) -> Result<Bytes, ApiError> {
        let asking = spawn(self.clone().ask(Instant::now()));
        let listed = match timeout(PATIENCE, asking).await {
            Ok(answer) => answer.expect("a question does not panic"),
            Err(_) => Err(StorageError::Unavailable {
                reason: "no answer in time to the requests before this one".to_owned(),
                advice: LOOK_AND_TRY_AGAIN,
                maybe_written: false,
            }),
        };
        listed.map_err(|failure| ApiError::storage(&failure, None))
    }

    async fn ask(self, came: Instant) -> Result<Bytes, StorageError> {
        let mut last = self.last.lock().await;
        if let Some((_, failure)) = last.failed.as_ref().filter(|(ended, _)| *ended > came) {
            return Err(failure.clone());
        }
        if last.asked <= came {
            let asked = Instant::now();
            match self.storage.users_unless(last.state.clone()).await {
                Ok(None) => {}
                Ok(Some((state, users))) => {
                    last.body = UserList::of(&users).to_json();
                    last.state = state;
                }
                Err(failure) => {
                    last.failed = Some((Instant::now(), failure.clone()));
                    return Err(failure);
                }
            }
            last.asked = asked;
        }
        Ok(last.body.clone())
    }
}
