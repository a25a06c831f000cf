//! Dates, in UTC: as people read them, and as they write them.

use std::time::Duration;

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`: years begin in March).
pub fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// `2026-11-23 05:00:00 UTC`, of seconds since 1970.
pub fn shown(seconds: u64) -> String {
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A time as a person writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long before now: `2h`, `3d`.
    Ago(Duration),
    /// A moment, in seconds since 1970 (UTC).
    At(u64),
}

impl When {
    /// `30m`, `2h`, `3d`, `1w`; a date `2026-11-23`; RFC 3339. A date or time without a zone is UTC.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = ago(text).map(Self::Ago).or_else(|| at(text).map(Self::At));
        parsed.ok_or_else(|| {
            "a time is `2h`, `3d`, a date `2026-11-23` (UTC), or RFC 3339: `2026-11-23T05:00:00Z`".to_owned()
        })
    }

    /// Seconds since 1970, if it is now `now`.
    pub fn seconds(self, now: Duration) -> u64 {
        match self {
            Self::Ago(span) => now.saturating_sub(span).as_secs(),
            Self::At(seconds) => seconds,
        }
    }
}

fn ago(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let number = digits(&text[..text.len() - 1], 1..=9)?;
    Some(Duration::from_secs(number * unit))
}

/// A number written with digits alone, so many of them.
fn digits(text: &str, count: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let plain = count.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn at(text: &str) -> Option<u64> {
    let (day, time) = match text.split_once(['T', 't', ' ']) {
        Some((day, time)) => (day, Some(time)),
        None => (text, None),
    };
    let midnight = midnight(day)?;
    let Some(time) = time else { return Some(midnight) };
    let (clock, offset) = zone(time)?;
    midnight.checked_add(seconds_of_day(clock)?)?.checked_add_signed(-offset)
}

/// The first second of `2026-11-23`.
fn midnight(day: &str) -> Option<u64> {
    let parts: Vec<&str> = day.split('-').collect();
    let [year, month, day] = parts[..] else { return None };
    let (year, month, day) = (digits(year, 4..=4)?, digits(month, 2..=2)?, digits(day, 2..=2)?);
    // The days of so many years, rounded down; the day is at most two years further on.
    let start = (year.checked_sub(1970)? * 365).saturating_sub(31);
    let end = start + 31 + 366 + year / 4;
    let found = (start..end).find(|days| date(*days) == (year, month, day))?;
    Some(found * 86_400)
}

/// `05:00:00` and, with fractions that are left aside, `05:00:00.123`.
fn seconds_of_day(clock: &str) -> Option<u64> {
    let whole = match clock.split_once('.') {
        Some((whole, fraction)) => digits(fraction, 1..=9).map(|_| whole)?,
        None => clock,
    };
    let parts: Vec<&str> = whole.split(':').collect();
    let number = |part: &str, below: u64| digits(part, 2..=2).filter(|number| *number < below);
    match parts[..] {
        [hour, minute] => Some(number(hour, 24)? * 3600 + number(minute, 60)? * 60),
        [hour, minute, second] => {
            Some(number(hour, 24)? * 3600 + number(minute, 60)? * 60 + number(second, 61)?)
        }
        _ => None,
    }
}

/// The time without its zone, and the zone's seconds east of UTC.
fn zone(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let Some(sign) = time.find(['+', '-']) else { return Some((time, 0)) };
    let (clock, offset) = time.split_at(sign);
    let seconds = i64::try_from(seconds_of_day(&offset[1..])?).ok()?;
    Some((clock, if offset.starts_with('-') { -seconds } else { seconds }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_there_and_back() {
        for days in [0, 58, 59, 789, 11_016, 18_321, 20_780, 47_541, 84_005] {
            let (year, month, day) = date(days);
            assert_eq!(midnight(&format!("{year:04}-{month:02}-{day:02}")), Some(days * 86_400));
        }
        assert_eq!(shown(1_795_410_000), "2026-11-23 05:00:00 UTC");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let five = Ok(When::At(1_795_410_000));
        let table = [
            ("2h", Ok(When::Ago(Duration::from_secs(7200)))),
            ("3d", Ok(When::Ago(Duration::from_secs(259_200)))),
            ("90s", Ok(When::Ago(Duration::from_secs(90)))),
            ("2026-11-23", Ok(When::At(1_795_392_000))),
            ("1970-01-01", Ok(When::At(0))),
            ("2026-11-23T05:00:00Z", five.clone()),
            ("2026-11-23T05:00:00.250Z", five.clone()),
            ("2026-11-23 05:00:00", five.clone()),
            ("2026-11-23T05:00", five.clone()),
            ("2026-11-23T06:00:00+01:00", five.clone()),
            ("2026-11-22T21:30:00-07:30", five),
        ];
        for (text, expected) in table {
            assert_eq!(When::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_told() {
        let table = [
            "",
            "h",
            "2",
            "2y",
            "-2h",
            "+2h",
            "2 h",
            "yesterday",
            "2026-02-29",
            "2026-13-01",
            "2026-1-1",
            "26-11-23",
            "1969-12-31",
            "2026-11-23T25:00:00Z",
            "2026-11-23T05:00:00+25:00",
            "2026-11-23T05:00:00 Z",
            "2026-11-23T",
            "2026-11-23-01",
            "9999999999h",
            "2hé",
        ];
        for text in table {
            assert!(When::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn ago_is_reckoned_from_now_and_never_before_1970() {
        let now = Duration::from_secs(10_000);
        assert_eq!(When::Ago(Duration::from_secs(7200)).seconds(now), 2800);
        assert_eq!(When::Ago(Duration::from_secs(72_000)).seconds(now), 0);
    }
}
