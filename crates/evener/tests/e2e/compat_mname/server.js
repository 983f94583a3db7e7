// A DNS server of npm mname on the socket that a balancer connects to: `node server.js SOCKET NAME`. Each response has a
// TXT record with the name of the server. Responses to names that begin with "big" have so many records that they fit only
// into TCP, and responses to names that begin with "slow" are delayed. A query that is signed by a key named like its
// algorithm is verified, and its response is signed. A zone is transferred in several messages to clients that sign.
// Protocol errors are logged to stderr by bunyan.
'use strict';

const fs = require('fs');
const pathOf = require('path');
const bunyan = require('bunyan');
const mname = require('mname');

const [path, name] = process.argv.slice(2);
const BIG_RECORDS = 40;
const SLOW_MS = 1000;
const ZONE_MESSAGES = 5;
const ZONE_RECORDS = 20;
const ALGORITHMS = ['hmac-md5', 'hmac-sha1', 'hmac-sha256'];
const KEYS = Object.fromEntries(ALGORITHMS.map((algorithm) =>
	[algorithm, { name: algorithm, algorithm, data: Buffer.from('known to both') }]));

const log = bunyan.createLogger({ name, level: 'warn', stream: process.stderr });
const server = mname.createServer({ log });

function transfer(query, end) {
	const zone = query.name();
	const soa = new mname.SOARecord(`ns.${zone}`, { serial: 7 });
	for (let message = 0; message < ZONE_MESSAGES; ++message) {
		if (message === 0)
			query.addAnswer(zone, soa, 60);
		for (let n = 0; n < ZONE_RECORDS; ++n)
			query.addAnswer(`n${message}-${n}.${zone}`, new mname.TXTRecord(name), 60);
		if (message === ZONE_MESSAGES - 1)
			query.addAnswer(zone, soa, 60);
		query.respond();
	}
	end();
}

server.on('query', (query, end) => {
	const queried = query.name();
	const isSigned = query.isSigned();
	const isTransfer = query.type() === 'AXFR';
	if (isSigned ? !query.verify(KEYS) : isTransfer) {
		query.setError('REFUSED');
		query.respond();
		end();
		return;
	}
	if (isTransfer) {
		transfer(query, end);
		return;
	}
	const texts = queried.startsWith('big') ?
		Array.from({ length: BIG_RECORDS }, (_, n) => `${name} ${n} ${'x'.repeat(100)}`) : [name];
	texts.forEach((text) => query.addAnswer(queried, new mname.TXTRecord(text), 60));
	const respond = () => {
		query.respond();
		end();
	};
	if (queried.startsWith('slow'))
		setTimeout(respond, SLOW_MS);
	else
		respond();
});

// The socket is created outside the directory and then moved into it, so that a watcher never finds a socket
// that does not listen yet.
const temporary = pathOf.join(pathOf.dirname(pathOf.dirname(path)), `${pathOf.basename(path)}.new`);
fs.rmSync(temporary, { force: true });
server.listenBalancer({ path: temporary }, () => {
	fs.renameSync(temporary, path);
	console.log('listening');
});
