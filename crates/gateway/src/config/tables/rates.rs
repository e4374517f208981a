//! Rates: `"100/s"`, or `{ rate = "100/s", burst = 200 }`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use toml::Value;

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::Setting;

/// A rate of events, such as 600 in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The number of events in `per`.
    pub amount: u64,
    /// The period.
    pub per: Duration,
    /// The number of events that may come at once.
    pub burst: u64,
}

/// What a rate counts.
pub(super) trait Amount {
    /// The name in the schema.
    const NAME: &str;
    const DESCRIPTION: &str;
    /// What serde's errors call it; `config/explain.rs` has the hint.
    const EXPECTED: &str;
    const RATE: &str;
    const BURST: &str;
    /// What a burst is written as.
    const NUMBER: &str;

    fn parse(text: &str) -> Option<u64>;
}

/// Connections or messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count;

impl Amount for Count {
    const NAME: &str = "CountRate";
    const DESCRIPTION: &str = "a rate: \"100/s\", \"10/m\", or { rate = \"100/s\", burst = 200 }";
    const EXPECTED: &str = "a rate";
    const RATE: &str = "\"100/s\"";
    const BURST: &str = "200";
    const NUMBER: &str = "a number";

    fn parse(text: &str) -> Option<u64> {
        text.replace('_', "").parse().ok()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes;

impl Amount for Bytes {
    const NAME: &str = "ByteRate";
    const DESCRIPTION: &str = "a rate: \"64KiB/s\", \"1MiB/s\", or { rate = \"1MiB/s\", burst = \"4MiB\" }";
    const EXPECTED: &str = "a rate of bytes";
    const RATE: &str = "\"1MiB/s\"";
    const BURST: &str = "\"4MiB\"";
    const NUMBER: &str = "a size";

    fn parse(text: &str) -> Option<u64> {
        text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
    }
}

/// A rate of connections or messages.
pub(super) type CountRate = Written<Count>;
/// A rate of bytes.
pub(super) type ByteRate = Written<Bytes>;

/// A rate as the file has it. It is parsed in [`validate`], which can say where it is wrong.
#[derive(Clone, Debug)]
pub(super) struct Written<A> {
    form: Form,
    amount: PhantomData<A>,
}

#[derive(Clone, Debug)]
enum Form {
    Text(String),
    Table(RateTable),
}

#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RateTable {
    rate: Option<Setting<Value>>,
    burst: Option<Setting<Value>>,
}

impl<'de, A: Amount> Deserialize<'de> for Written<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FormVisitor<A>(PhantomData<A>);

        impl<'de, A: Amount> Visitor<'de> for FormVisitor<A> {
            type Value = Form;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(A::EXPECTED)
            }

            fn visit_str<E>(self, text: &str) -> Result<Form, E> {
                Ok(Form::Text(text.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Form, M::Error> {
                RateTable::deserialize(MapAccessDeserializer::new(map)).map(Form::Table)
            }
        }

        let form = deserializer.deserialize_any(FormVisitor(PhantomData::<A>))?;
        Ok(Self { form, amount: PhantomData })
    }
}

impl<A: Amount> JsonSchema for Written<A> {
    fn schema_name() -> Cow<'static, str> {
        A::NAME.into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "object"], "description": A::DESCRIPTION })
    }
}

/// As [`validate`], of a rate that has no burst.
pub(super) fn validate_pace(written: Option<&Setting<CountRate>>, document: &mut Document) -> Option<Rate> {
    if let Some(written) = written.filter(|written| matches!(written.form, Form::Table(_))) {
        document.error(written, Complaint::new("a pace has no burst").hint(format!("write {}", Count::RATE)));
        return None;
    }
    validate(written, document)
}

/// The rate, if the file sets one. Reports what is wrong with it: then there is none.
pub(super) fn validate<A: Amount>(written: Option<&Setting<Written<A>>>, document: &mut Document) -> Option<Rate> {
    let written = written?;
    let rate = match &written.form {
        Form::Text(text) => parse::<A>(text).map_err(|complaint| document.error(written, complaint)),
        Form::Table(table) => validate_table::<A>(table, written, document),
    };
    rate.ok()
}

fn validate_table<A: Amount>(
    table: &RateTable,
    written: &Setting<Written<A>>,
    document: &mut Document,
) -> Result<Rate, Reported> {
    let example = format!("{{ rate = {}, burst = {} }}", A::RATE, A::BURST);
    let rate = document.require(table.rate.as_ref(), written, "rate", &example);
    let hint = format!("{example}; for a burst of one second's worth, write {} alone", A::RATE);
    let burst = document.require(table.burst.as_ref(), written, "burst", &hint);
    let rate = rate.and_then(|rate| {
        let parsed = match &rate.value {
            Value::String(text) => parse::<A>(text),
            _ => Err(Complaint::new("`rate` must be a string").hint(format!("write {}", A::RATE))),
        };
        parsed.map_err(|complaint| document.error(rate, complaint))
    });
    let setting = burst?;
    let number = match &setting.value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => A::parse(text),
        _ => None,
    };
    let Some(burst) = number.filter(|burst| *burst > 0) else {
        let hint =
            format!("it is what may come at once, such as {}; for one second's worth, write the rate alone", A::BURST);
        let message = format!("`burst` must be {} greater than 0", A::NUMBER);
        return Err(document.error(setting, Complaint::new(message).hint(hint)));
    };
    let rate = Rate { burst, ..rate? };
    if rate.refill() > DAY {
        let complaint = Complaint::new("`burst` is more than the rate allows in a day: the limit hardly ever applies");
        document.warning(setting, complaint.hint("it is what may come at once: some seconds' worth of the rate"));
    }
    Ok(rate)
}

/// No burst of use takes longer to come again.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Rate {
    /// How long it takes until a burst that was used up may come again; whole seconds.
    fn refill(&self) -> Duration {
        let seconds = u128::from(self.burst) * u128::from(self.per.as_secs()) / u128::from(self.amount);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
    }
}

/// A rate with a burst of one second's worth.
fn parse<A: Amount>(text: &str) -> Result<Rate, Complaint> {
    let not_a_rate = || {
        let hint = format!("write {}; `/s`, `/m` and `/h`: per second, minute and hour", A::RATE);
        Complaint::new(format!("`{text}` is not a rate")).hint(hint)
    };
    let (number, unit) = text.split_once('/').ok_or_else(not_a_rate)?;
    let per = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => return Err(not_a_rate()),
    };
    let amount = A::parse(number.trim()).ok_or_else(not_a_rate)?;
    if amount == 0 {
        let complaint = Complaint::new(format!("`{text}`: a rate is greater than 0"));
        return Err(complaint.hint("for no limit, leave the key out"));
    }
    Ok(Rate { amount, per: Duration::from_secs(per), burst: (amount / per).max(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_an_amount_and_a_unit() {
        let rate = |amount, per, burst| Some(Rate { amount, per: Duration::from_secs(per), burst });
        assert_eq!(parse::<Count>("100/s").ok(), rate(100, 1, 100));
        assert_eq!(parse::<Count>("5/m").ok(), rate(5, 60, 1));
        assert_eq!(parse::<Count>("600/m").ok(), rate(600, 60, 10));
        assert_eq!(parse::<Bytes>("1MiB/s").ok(), rate(1 << 20, 1, 1 << 20));
        for wrong in ["100", "0/s", "x/s", "100/d", "-1/s"] {
            assert!(parse::<Count>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_refill_of_a_burst_does_not_overflow() {
        let rate = |amount, per, burst| Rate { amount, per: Duration::from_secs(per), burst };
        assert_eq!(rate(100, 1, 200).refill(), Duration::from_secs(2));
        assert_eq!(rate(1, 3600, 24).refill(), DAY);
        assert_eq!(rate(1, 3600, u64::MAX).refill(), Duration::from_secs(u64::MAX));
    }
}
