//! What is wrong, and what an administrator can do about it.

/// A problem and its remedy. They stay apart until they are shown, because either may contain a semicolon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct Problem {
    pub what: String,
    pub remedy: String,
}

/// Of what can fail with a [`Problem`].
pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// A [`Problem`], from two texts for `format!`: what is wrong, and what to do.
macro_rules! problem {
    ($what:literal, $remedy:literal $(,)?) => {
        $crate::problem::Problem { what: format!($what), remedy: format!($remedy) }
    };
}

/// Returns with a [`Problem`].
macro_rules! bail {
    ($what:literal, $remedy:literal $(,)?) => {
        return Err($crate::problem::problem!($what, $remedy).into())
    };
}

/// Returns with a [`Problem`] unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $what:literal, $remedy:literal $(,)?) => {
        if !$condition {
            $crate::problem::bail!($what, $remedy);
        }
    };
}

pub(crate) use {bail, ensure, problem};
