//! The Gregorian calendar, years 0 to 9999, as the clock's registers count it.

/// Seconds in a day.
pub(super) const DAY: i64 = 86_400;
/// 0000-01-01 00:00:00, in seconds since 1970.
pub(super) const FIRST_SECOND: i64 = -719_528 * DAY;
/// 9999-12-31 23:59:59, in seconds since 1970.
pub(super) const LAST_SECOND: i64 = 2_932_897 * DAY - 1;

/// A moment, in the registers' fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) second: u8,
    pub(super) minute: u8,
    /// 0 to 23.
    pub(super) hour: u8,
    /// 1 to 7; Sunday is 1, unless the guest thinks otherwise.
    pub(super) weekday: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1 to 12.
    pub(super) month: u8,
    /// In its century, 0 to 99.
    pub(super) year: u8,
    /// 0 to 99.
    pub(super) century: u8,
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from year 0 to `year`, which has leap days before it at every fourth year but for centuries.
fn days_before_year(year: i64) -> i64 {
    match year {
        0 => 0,
        _ => 365 * year + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 + 1,
    }
}

fn days_in_month(month: u8, leap: bool) -> u8 {
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The weekday of a day counted from 0000-01-01, which was a Saturday: 0 is Sunday.
fn weekday_of(day: i64) -> i64 {
    (day + 6).rem_euclid(7)
}

impl Date {
    /// The date `unix` seconds after 1970 began, with weekdays `weekday_lead` ahead of the calendar's.
    pub(super) fn from_unix(unix: i64, weekday_lead: u8) -> Self {
        let since_0 = unix.clamp(FIRST_SECOND, LAST_SECOND) - FIRST_SECOND;
        let (days, second_of_day) = (since_0 / DAY, since_0 % DAY);
        // The mean year is 365.2425 days: the guess is right or one off.
        let mut year = days * 400 / 146_097;
        while days_before_year(year) > days {
            year -= 1;
        }
        while days_before_year(year + 1) <= days {
            year += 1;
        }
        let mut day = days - days_before_year(year);
        let mut month = 1;
        while month < 12 && day >= i64::from(days_in_month(month, is_leap(year))) {
            day -= i64::from(days_in_month(month, is_leap(year)));
            month += 1;
        }
        Self {
            second: (second_of_day % 60) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            hour: (second_of_day / 3600) as u8,
            weekday: ((weekday_of(days) + i64::from(weekday_lead)) % 7) as u8 + 1,
            day: day as u8 + 1,
            month,
            year: (year % 100) as u8,
            century: (year / 100) as u8,
        }
    }

    /// Seconds since 1970 began, and how far the weekday is ahead of the calendar's (0 to 6). Fields
    /// out of range are taken as the nearest in range.
    pub(super) fn to_unix(self) -> (i64, u8) {
        let year = i64::from(self.century.min(99)) * 100 + i64::from(self.year.min(99));
        let month = self.month.clamp(1, 12);
        let day = self.day.clamp(1, days_in_month(month, is_leap(year)));
        let before: i64 = (1..month).map(|m| i64::from(days_in_month(m, is_leap(year)))).sum();
        let days = days_before_year(year) + before + i64::from(day) - 1;
        let second_of_day = i64::from(self.hour.min(23)) * 3600
            + i64::from(self.minute.min(59)) * 60
            + i64::from(self.second.min(59));
        let lead = (i64::from(self.weekday.clamp(1, 7)) - 1 - weekday_of(days)).rem_euclid(7);
        (FIRST_SECOND + days * DAY + second_of_day, lead as u8)
    }
}

/// Seconds from `second_of_day` to the next later moment whose hour, minute and second match: 1 to
/// 86,400, or none in any day.
pub(super) fn next_match(
    second_of_day: u32,
    hour_matches: impl Fn(u8) -> bool,
    minute_matches: impl Fn(u8) -> bool,
    second_matches: impl Fn(u8) -> bool,
) -> Option<u32> {
    const DAY: u32 = super::DAY as u32;
    let start = second_of_day + 1;
    let mut t = start;
    // Each turn leaves an hour, a minute or a second that does not match: at most 25 + 60 + 60 turns.
    while t <= start + DAY {
        let of_day = t % DAY;
        if !hour_matches((of_day / 3600) as u8) {
            t += 3600 - of_day % 3600;
        } else if !minute_matches((of_day / 60 % 60) as u8) {
            t += 60 - of_day % 60;
        } else if !second_matches((of_day % 60) as u8) {
            t += 1;
        } else {
            return (t - second_of_day <= DAY).then_some(t - second_of_day);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_known_from_elsewhere() {
        // 1970-01-01 was a Thursday; 2000-02-29 a Tuesday; 2026-11-23 a Monday.
        for (unix, century, year, month, day, weekday) in [
            (0, 19, 70, 1, 1, 5),
            (951_782_400, 20, 0, 2, 29, 3),
            (951_868_800, 20, 0, 3, 1, 4),
            (1_795_392_000, 20, 26, 11, 23, 2),
            (-1, 19, 69, 12, 31, 4),
            (FIRST_SECOND, 0, 0, 1, 1, 7),
            (LAST_SECOND, 99, 99, 12, 31, 6),
        ] {
            let date = Date::from_unix(unix, 0);
            let got = (date.century, date.year, date.month, date.day, date.weekday);
            assert_eq!(got, (century, year, month, day, weekday), "{unix}");
        }
    }

    proptest::proptest! {
        #[test]
        fn dates_convert_both_ways(unix in FIRST_SECOND..=LAST_SECOND, lead in 0u8..7) {
            proptest::prop_assert_eq!(Date::from_unix(unix, lead).to_unix(), (unix, lead));
        }

        #[test]
        fn next_match_is_the_first_match(from in 0u32..86_400, h in 0u8..26, m in 0u8..62, s in 0u8..62) {
            // The last value of each range stands for "any".
            let hit = |t: u32| {
                let t = t % 86_400;
                (h == 25 || u32::from(h) == t / 3600)
                    && (m == 61 || u32::from(m) == t / 60 % 60)
                    && (s == 61 || u32::from(s) == t % 60)
            };
            let expected = (1..=86_400).find(|d| hit(from + d));
            let got = next_match(from, |v| h == 25 || v == h, |v| m == 61 || v == m, |v| s == 61 || v == s);
            proptest::prop_assert_eq!(got, expected);
        }
    }
}
