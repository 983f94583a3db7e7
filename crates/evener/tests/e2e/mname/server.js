// A DNS server of npm mname on the socket that a balancer connects to: `node server.js SOCKET NAME`. It answers each
// question with a TXT record that has its name, names that begin with "big" with so many that only TCP has room for them,
// and names that begin with "slow" after a while. What it sees as a protocol error goes to stderr, as bunyan writes it.
'use strict';

const fs = require('fs');
const pathOf = require('path');
const bunyan = require('bunyan');
const mname = require('mname');

const [path, name] = process.argv.slice(2);
const BIG_RECORDS = 40;
const SLOW_MS = 1000;

const log = bunyan.createLogger({ name, level: 'warn', stream: process.stderr });
const server = mname.createServer({ log });

server.on('query', (query, end) => {
	const asked = query.name();
	const texts = asked.startsWith('big') ?
		Array.from({ length: BIG_RECORDS }, (_, n) => `${name} ${n} ${'x'.repeat(100)}`) : [name];
	texts.forEach((text) => query.addAnswer(asked, new mname.TXTRecord(text), 60));
	const answer = () => {
		query.respond();
		end();
	};
	if (asked.startsWith('slow'))
		setTimeout(answer, SLOW_MS);
	else
		answer();
});

// Made beside the directory and then moved there: whoever watches never sees it gone, or not yet listening.
const beside = pathOf.join(pathOf.dirname(pathOf.dirname(path)), `${pathOf.basename(path)}.new`);
fs.rmSync(beside, { force: true });
server.listenBalancer({ path: beside }, () => {
	fs.renameSync(beside, path);
	console.log('listening');
});
