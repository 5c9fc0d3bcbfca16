-- delivery.db, version 4: how far each endpoint has been told. All of it is
-- derived; losing the file loses no event, it sends some of them again.

-- How far the log has been followed for changes of endpoints.
CREATE TABLE follow (
	id       INTEGER PRIMARY KEY CHECK (id = 1),
	position INTEGER NOT NULL
) STRICT;

-- A copy of what the log says about each endpoint. Numbers are not used again,
-- so that a late write for a deleted endpoint cannot meet a new one.
CREATE TABLE endpoint (
	no     INTEGER PRIMARY KEY AUTOINCREMENT,
	id     TEXT    NOT NULL UNIQUE,
	config TEXT    NOT NULL -- JSON
) STRICT;

-- Endpoints that were deleted: an account may have to be told that they knew
-- of it.
CREATE TABLE former (
	no INTEGER PRIMARY KEY,
	id TEXT    NOT NULL
) STRICT;

-- Where the endpoint stands. Everything up to low is settled; bit i of done
-- says that position low+1+i is, too. Whoever delivers raises epoch first, and
-- writes only while it is still his.
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

-- Accounts with a failing delivery: everything of the stream from a revision
-- on is still owed, although low may have passed it.
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

-- Events given up.
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

-- The last requests, in a ring: row number seq lies in slot seq modulo its
-- size. What was sent is not here, it is in the log.
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

-- Requests to send events once more, each from after a position up to one.
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

-- Accounts of which something was erased. What receivers answer to requests
-- begun before a time may quote it, and is not kept.
CREATE TABLE erased (
	sub   TEXT    PRIMARY KEY,
	until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
