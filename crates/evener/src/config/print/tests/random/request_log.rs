//! Random request logs.

use super::Chance;
use evener_core::request_log::{RequestLogFormat, Template};
use evener_core::spec::{LogDestination, Protocol, RequestLog};

impl Chance<'_> {
    pub(super) fn request_log(&mut self, protocol: Protocol) -> RequestLog {
        let destination = match self.below(5) {
            3 => LogDestination::Syslog("/dev/log".into()),
            0 => LogDestination::File("/dev/stdout".into()),
            1 => LogDestination::File(self.path().into()),
            2 => LogDestination::Udp("[2001:db8::1]:10000".parse().unwrap()),
            _ => LogDestination::Udp("10.0.0.9:10000".parse().unwrap()),
        };
        let log = RequestLog::new(destination, protocol);
        if self.one_in(2) {
            return log;
        }
        let custom = Template::parse("{client} \"{target}\" {{\\}}").unwrap();
        let format = match self.below(6) {
            5 => RequestLogFormat::Template(custom.into()),
            index => {
                let name = RequestLogFormat::NAMES[index];
                RequestLogFormat::of_protocol(name, protocol).unwrap_or(RequestLogFormat::Json)
            }
        };
        let is_part = format != RequestLogFormat::Pen && self.one_in(2);
        let sample = if is_part { self.within(1..=RequestLog::ALL) } else { RequestLog::ALL };
        RequestLog { format, sample, ..log }
    }
}
