-- delivery.db, version 5: the progress of deliveries. It is derived from the log:
-- without the file no event is lost, but some are sent again. The table endpoint
-- and the columns of that name are about webhooks.

-- The position up to which the log was followed for changes of webhooks, and the
-- id of the event there; the ledger whose log it is.
CREATE TABLE follow (
	id       INTEGER PRIMARY KEY CHECK (id = 1),
	position INTEGER NOT NULL,
	event    BLOB    NOT NULL DEFAULT x'',
	ledger   TEXT    NOT NULL DEFAULT ''
) STRICT;

-- The numbers of webhooks. They are not reused, so a late write for a deleted
-- webhook cannot affect a new one. The settings of webhooks are in the log only.
CREATE TABLE endpoint (
	no    INTEGER PRIMARY KEY AUTOINCREMENT,
	id    TEXT    NOT NULL UNIQUE,
	state TEXT    NOT NULL DEFAULT '' -- the last known one: enabling a webhook closes its breaker
) STRICT;

-- Deleted webhooks, which disclosures list as well.
CREATE TABLE former (
	no INTEGER PRIMARY KEY,
	id TEXT    NOT NULL
) STRICT;

-- The cursor of each webhook. Every position up to low is settled; bit i of done
-- says whether position low+1+i is. A worker increments epoch when it starts, and
-- writes only while epoch has its value.
CREATE TABLE cursor (
	endpoint       INTEGER PRIMARY KEY,
	epoch          INTEGER NOT NULL DEFAULT 0,
	low            INTEGER NOT NULL,
	done           BLOB    NOT NULL DEFAULT x'',
	partial        TEXT    NOT NULL DEFAULT '{}', -- JSON: position -> how many of its several public events are delivered
	breaker_step   INTEGER NOT NULL DEFAULT 0,
	breaker_until  INTEGER NOT NULL DEFAULT 0,
	breaker_reason TEXT    NOT NULL DEFAULT '',
	first_failure  INTEGER NOT NULL DEFAULT 0,    -- of the failures in a row; 0: the last one succeeded
	last_success   INTEGER NOT NULL DEFAULT 0,
	attempts       INTEGER NOT NULL DEFAULT 0     -- made in all, remembered or not
) STRICT;

-- Accounts with a failing delivery: all events of the stream from a revision on
-- are still owed, although low may have passed them.
CREATE TABLE lane (
	endpoint      INTEGER NOT NULL,
	stream        TEXT    NOT NULL,
	next_revision INTEGER NOT NULL,
	next_position INTEGER NOT NULL,
	attempt       INTEGER NOT NULL, -- failed ones of the next event
	not_before    INTEGER NOT NULL,
	error         TEXT    NOT NULL DEFAULT '', -- a code, of the last one
	PRIMARY KEY (endpoint, stream)
) STRICT, WITHOUT ROWID;

-- Events that are no longer retried.
CREATE TABLE dead_letter (
	endpoint INTEGER NOT NULL,
	position INTEGER NOT NULL,
	part     INTEGER NOT NULL, -- which of the event's public events
	event    BLOB    NOT NULL, -- id of the public event
	type     TEXT    NOT NULL,
	sub      TEXT    NOT NULL,
	sequence INTEGER NOT NULL,
	time     INTEGER NOT NULL,
	reason   TEXT    NOT NULL,
	reported INTEGER NOT NULL DEFAULT 0, -- an event in the log tells of it
	PRIMARY KEY (endpoint, position, part)
) STRICT, WITHOUT ROWID;

-- The last requests, in a ring buffer: row seq is in slot seq modulo its size. The
-- body of a request is not stored; its events are in the log.
CREATE TABLE attempt (
	endpoint INTEGER NOT NULL,
	slot     INTEGER NOT NULL,
	seq      INTEGER NOT NULL,
	position INTEGER NOT NULL,
	part     INTEGER NOT NULL,
	event    BLOB    NOT NULL,
	type     TEXT    NOT NULL,
	sub      TEXT    NOT NULL,
	sequence INTEGER NOT NULL,
	time     INTEGER NOT NULL,
	duration INTEGER NOT NULL, -- microseconds
	status   INTEGER NOT NULL, -- HTTP's; 0: no response
	error    TEXT    NOT NULL, -- a code
	response BLOB,             -- the start of a refusal's body; never of a private address
	trigger  TEXT    NOT NULL DEFAULT 'schedule',
	PRIMARY KEY (endpoint, slot)
) STRICT, WITHOUT ROWID;

-- Jobs that send events once more, from a position on up to another.
CREATE TABLE replay (
	id       TEXT    PRIMARY KEY,
	endpoint INTEGER NOT NULL,
	filter   TEXT    NOT NULL, -- JSON: what was asked for
	position INTEGER NOT NULL, -- up to here it is done
	last     INTEGER NOT NULL, -- up to here it goes
	sent     INTEGER NOT NULL DEFAULT 0, -- that were delivered
	failed   INTEGER NOT NULL DEFAULT 0,
	state    TEXT    NOT NULL,
	created  INTEGER NOT NULL,
	ended    INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE INDEX replays ON replay (endpoint, created);

-- Accounts of which data was erased. Responses to requests that began before until
-- may quote it and are not stored.
CREATE TABLE erased (
	sub   TEXT    PRIMARY KEY,
	until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
