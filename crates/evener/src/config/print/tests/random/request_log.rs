//! Random request logs.

use super::Chance;
use evener_core::request_log::{RequestLogFormat, Template};
use evener_core::spec::{LogDestination, Protocol, RequestLog};

impl Chance<'_> {
    pub(super) fn request_log(&mut self, protocol: Protocol) -> RequestLog {
        let destination = match self.below(4) {
            0 => LogDestination::File("/dev/stdout".into()),
            1 => LogDestination::File(self.path().into()),
            2 => LogDestination::Udp("[2001:db8::1]:10000".parse().unwrap()),
            _ => LogDestination::Udp("10.0.0.9:10000".parse().unwrap()),
        };
        let log = RequestLog::new(destination, protocol);
        if protocol != Protocol::Http || self.one_in(2) {
            return log;
        }
        let custom = Template::parse("{client} \"{target}\" {{\\}}").unwrap();
        let format = match self.below(6) {
            5 => RequestLogFormat::Template(custom.into()),
            index => RequestLogFormat::named(RequestLogFormat::NAMES[index]).unwrap(),
        };
        RequestLog { format, ..log }
    }
}
