package sqliteledger

// Everything that SQLite is told is in this file.
//
// records has every sandbox; live has what only those have that are queued or
// on a node, so that claiming and placing cost the same however many have
// ended. A live row with node '' is queued. Times are nanoseconds since 1970, 0
// for none.
//
// tenant_use, node_use and totals are sums over live, so that no step counts
// through what is live either. Triggers keep them: they change in the
// transaction that changes a live row, whichever step or program that is.

// applicationID marks our files: "TART".
const applicationID = 0x54415254

// migrations[i] takes a store from version i to i+1. They are only ever added
// to.
var migrations = []string{
	// 1: the first.
	`
CREATE TABLE records (
	id       TEXT PRIMARY KEY,
	tenant   TEXT NOT NULL,
	state    TEXT NOT NULL,
	node     TEXT NOT NULL,
	ended_at INTEGER NOT NULL,
	seq      INTEGER NOT NULL, -- of the last event
	doc      TEXT NOT NULL     -- sandbox.Record as JSON
);
CREATE INDEX records_tenant ON records (tenant, state, id);
CREATE INDEX records_state ON records (state, id);
CREATE INDEX records_node ON records (node, state, id) WHERE node > '';
CREATE INDEX records_ended ON records (ended_at, id) WHERE ended_at > 0;

CREATE TABLE live (
	id          TEXT PRIMARY KEY,
	tenant      TEXT NOT NULL,
	node        TEXT NOT NULL,
	vcpus       INTEGER NOT NULL,
	memory_mib  INTEGER NOT NULL,
	disk_mib    INTEGER NOT NULL,
	created_at  INTEGER NOT NULL,
	deadline    INTEGER NOT NULL, -- when it has waited too long
	not_before  INTEGER NOT NULL,
	owner       TEXT NOT NULL,    -- of the last claim, and the next three
	token       INTEGER NOT NULL,
	claimed_at  INTEGER NOT NULL,
	claim_until INTEGER NOT NULL,
	ready_at    INTEGER NOT NULL, -- the later of not_before and claim_until
	overdue_at  INTEGER NOT NULL, -- the later of deadline and claim_until; 0 without a deadline
	waiting     TEXT NOT NULL     -- ledger.Waiting as JSON
) WITHOUT ROWID;
CREATE INDEX live_queue ON live (tenant, id, ready_at, claim_until) WHERE node = '';
CREATE INDEX live_ready ON live (ready_at, tenant) WHERE node = '';
CREATE INDEX live_overdue ON live (overdue_at, deadline, id) WHERE node = '' AND overdue_at > 0;
CREATE INDEX live_tenant ON live (tenant, node, vcpus, memory_mib, disk_mib);
CREATE INDEX live_node ON live (node, vcpus, memory_mib, disk_mib) WHERE node > '';

CREATE TABLE sealed ( -- what a live sandbox was admitted with
	id      TEXT PRIMARY KEY,
	limits  TEXT NOT NULL, -- sandbox.Limits as JSON
	verdict BLOB,
	secrets BLOB
);

CREATE TABLE tenants (
	tenant TEXT PRIMARY KEY,
	served INTEGER NOT NULL -- grows with every claim of any tenant
) WITHOUT ROWID;
CREATE INDEX tenants_served ON tenants (served);

CREATE TABLE events (
	id      TEXT NOT NULL,
	seq     INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	state   TEXT NOT NULL,
	cause   TEXT NOT NULL,
	message TEXT NOT NULL,
	PRIMARY KEY (id, seq)
) WITHOUT ROWID;

CREATE TABLE keys (
	tenant  TEXT NOT NULL,
	key     TEXT NOT NULL,
	hash    TEXT NOT NULL,
	expires INTEGER NOT NULL,
	id      TEXT NOT NULL,
	PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX keys_expires ON keys (expires);

CREATE TABLE nodes (
	id    TEXT PRIMARY KEY,
	epoch INTEGER NOT NULL,
	doc   TEXT NOT NULL -- sandbox.Node as JSON, as it joined
) WITHOUT ROWID;

CREATE TABLE audit (
	seq    INTEGER PRIMARY KEY,
	tenant TEXT NOT NULL,
	doc    TEXT NOT NULL -- ledger.AuditText, byte for byte
);
CREATE INDEX audit_tenant ON audit (tenant, seq);

CREATE TABLE tokens (
	id         TEXT PRIMARY KEY,
	hash       BLOB NOT NULL UNIQUE,
	tenant     TEXT NOT NULL,
	created_at INTEGER NOT NULL,
	doc        TEXT NOT NULL -- ledger.Token as JSON
);
`,
	// 2: the texts of policies, and which records name them.
	`
CREATE TABLE policies (
	version      TEXT PRIMARY KEY,
	text         TEXT NOT NULL,
	origin       TEXT NOT NULL,
	seq          INTEGER NOT NULL UNIQUE, -- grows with every activation
	activated_at INTEGER NOT NULL,
	replaced_at  INTEGER NOT NULL         -- 0: it is the active one
);
ALTER TABLE records ADD COLUMN policy TEXT NOT NULL DEFAULT '';
UPDATE records SET policy = coalesce(json_extract(doc, '$.verdict.policy_version'), '');
CREATE INDEX records_policy ON records (policy) WHERE policy > '';
`,
	// 3: sums over live, where they were counted through.
	`
DROP INDEX live_tenant;
DROP INDEX live_node;
DROP INDEX live_ready;
CREATE INDEX live_ready ON live (tenant, ready_at) WHERE node = '';

CREATE TABLE tenant_use (
	tenant     TEXT PRIMARY KEY,
	live       INTEGER NOT NULL,
	running    INTEGER NOT NULL, -- on nodes, and so is the rest
	vcpus      INTEGER NOT NULL,
	memory_mib INTEGER NOT NULL,
	disk_mib   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tenant_waits ON tenant_use (tenant) WHERE live > running;

CREATE TABLE node_use (
	node       TEXT PRIMARY KEY,
	running    INTEGER NOT NULL,
	vcpus      INTEGER NOT NULL,
	memory_mib INTEGER NOT NULL,
	disk_mib   INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE totals ( -- one row
	on_nodes INTEGER NOT NULL,
	joins    INTEGER NOT NULL -- of nodes, ever
);
INSERT INTO totals VALUES (0, 0);

CREATE TRIGGER live_in AFTER INSERT ON live BEGIN
	SELECT raise(ABORT, 'a new request is on no node') WHERE new.node > '';
	INSERT INTO tenant_use VALUES (new.tenant, 1, 0, 0, 0, 0) ON CONFLICT DO UPDATE SET live = live + 1;
END;
CREATE TRIGGER live_out AFTER DELETE ON live BEGIN
	UPDATE tenant_use SET live = live - 1 WHERE tenant = old.tenant;
END;
CREATE TRIGGER live_same BEFORE UPDATE OF id, tenant, vcpus, memory_mib, disk_mib ON live BEGIN
	SELECT raise(ABORT, 'what a request asks for does not change');
END;
CREATE TRIGGER live_placed AFTER UPDATE OF node ON live WHEN new.node > '' AND new.node <> old.node BEGIN
	INSERT INTO node_use VALUES (new.node, 1, new.vcpus, new.memory_mib, new.disk_mib)
		ON CONFLICT DO UPDATE SET running = running + 1, vcpus = vcpus + new.vcpus,
			memory_mib = memory_mib + new.memory_mib, disk_mib = disk_mib + new.disk_mib;
	UPDATE tenant_use SET running = running + 1, vcpus = vcpus + new.vcpus,
		memory_mib = memory_mib + new.memory_mib, disk_mib = disk_mib + new.disk_mib WHERE tenant = new.tenant;
	UPDATE totals SET on_nodes = on_nodes + 1;
END;
CREATE TRIGGER live_left AFTER UPDATE OF node ON live WHEN old.node > '' AND new.node <> old.node BEGIN
	UPDATE node_use SET running = running - 1, vcpus = vcpus - old.vcpus,
		memory_mib = memory_mib - old.memory_mib, disk_mib = disk_mib - old.disk_mib WHERE node = old.node;
	UPDATE tenant_use SET running = running - 1, vcpus = vcpus - old.vcpus,
		memory_mib = memory_mib - old.memory_mib, disk_mib = disk_mib - old.disk_mib WHERE tenant = old.tenant;
	UPDATE totals SET on_nodes = on_nodes - 1;
END;
CREATE TRIGGER live_ended AFTER DELETE ON live WHEN old.node > '' BEGIN
	UPDATE node_use SET running = running - 1, vcpus = vcpus - old.vcpus,
		memory_mib = memory_mib - old.memory_mib, disk_mib = disk_mib - old.disk_mib WHERE node = old.node;
	UPDATE tenant_use SET running = running - 1, vcpus = vcpus - old.vcpus,
		memory_mib = memory_mib - old.memory_mib, disk_mib = disk_mib - old.disk_mib WHERE tenant = old.tenant;
	UPDATE totals SET on_nodes = on_nodes - 1;
END;
CREATE TRIGGER node_joined AFTER INSERT ON nodes BEGIN
	UPDATE totals SET joins = joins + 1;
END;
`,
}

// sumsVersion is the first version that has sums.
const sumsVersion = 3

// sqlSumAnew makes the sums of what there is. It is done at each opening, so
// that whatever somebody did to the file by hand does not stay in them.
const sqlSumAnew = `
DELETE FROM tenant_use;
INSERT INTO tenant_use
SELECT tenant, count(*), sum(node > ''), sum(iif(node > '', vcpus, 0)), sum(iif(node > '', memory_mib, 0)), sum(iif(node > '', disk_mib, 0))
FROM live GROUP BY tenant;
DELETE FROM node_use;
INSERT INTO node_use SELECT node, count(*), sum(vcpus), sum(memory_mib), sum(disk_mib) FROM live WHERE node > '' GROUP BY node;
UPDATE totals SET on_nodes = (SELECT count(*) FROM live WHERE node > ''), joins = (SELECT coalesce(sum(epoch), 0) FROM nodes);`

// Opening.
const (
	sqlWriterPragmas = `
PRAGMA synchronous = FULL;
PRAGMA secure_delete = ON;
PRAGMA temp_store = MEMORY;
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
PRAGMA wal_autocheckpoint = 1000;`
	sqlReaderPragmas = `
PRAGMA temp_store = MEMORY;
PRAGMA trusted_schema = OFF;
PRAGMA query_only = ON;`
	sqlWAL          = `PRAGMA journal_mode = WAL`
	sqlApplication  = `PRAGMA application_id`
	sqlMark         = `PRAGMA application_id = 1413567060` // applicationID
	sqlTables       = `SELECT count(*) FROM sqlite_schema WHERE type = 'table'`
	sqlVersionTable = `CREATE TABLE schema_version (version INTEGER NOT NULL)`
	sqlVersion      = `SELECT max(version) FROM schema_version`
	sqlSetVersion   = `INSERT INTO schema_version (version) VALUES (?1)`
	sqlTruncateWAL  = `PRAGMA wal_checkpoint(TRUNCATE)`
)

// Transactions.
const (
	sqlBegin      = `BEGIN IMMEDIATE`
	sqlCommit     = `COMMIT`
	sqlRollback   = `ROLLBACK`
	sqlSave       = `SAVEPOINT step`
	sqlUnsave     = `RELEASE step`
	sqlBackToSave = `ROLLBACK TO step`
	sqlSnapshot   = `BEGIN DEFERRED`
)

// One sandbox.
const (
	sqlEntry = `
SELECT r.doc, r.seq, l.owner, l.token, l.claimed_at, l.claim_until, l.not_before, l.waiting
FROM records r LEFT JOIN live l ON l.id = r.id WHERE r.id = ?1`
	sqlExists       = `SELECT 1 FROM records WHERE id = ?1`
	sqlRecord       = `SELECT doc FROM records WHERE id = ?1`
	sqlCountState   = `SELECT count(*) FROM records WHERE state = ?1`
	sqlInsertRecord = `INSERT INTO records (id, tenant, state, node, ended_at, seq, doc, policy) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)`
	sqlUpdateRecord = `UPDATE records SET state = ?2, node = ?3, ended_at = ?4, seq = ?5, doc = ?6 WHERE id = ?1`
	sqlInsertEvent  = `INSERT INTO events (id, seq, at, state, cause, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6)`
	sqlInsertLive   = `
INSERT INTO live (id, tenant, vcpus, memory_mib, disk_mib, created_at, deadline,
	node, not_before, owner, token, claimed_at, claim_until, ready_at, overdue_at, waiting)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, '', 0, '', 0, 0, 0, 0, ?7, '{}')`
	sqlUpdateLive = `
UPDATE live SET node = ?2, not_before = ?3, owner = ?4, token = ?5, claimed_at = ?6, claim_until = ?7,
	ready_at = ?8, overdue_at = ?9, waiting = ?10 WHERE id = ?1`
	sqlDeleteLive   = `DELETE FROM live WHERE id = ?1`
	sqlInsertSealed = `INSERT INTO sealed (id, limits, verdict, secrets) VALUES (?1, ?2, ?3, ?4)`
	sqlDeleteSealed = `DELETE FROM sealed WHERE id = ?1`
	sqlSealed       = `SELECT limits, verdict, secrets FROM sealed WHERE id = ?1`
	sqlLimits       = `SELECT limits FROM sealed WHERE id = ?1`
	sqlEvents       = `SELECT seq, at, state, cause, message FROM events WHERE id = ?1 AND seq > ?2 ORDER BY seq`
)

// Sums, which triggers keep.
const (
	sqlLiveCount   = `SELECT live FROM tenant_use WHERE tenant = ?1`
	sqlUsage       = `SELECT live, running, vcpus, memory_mib, disk_mib FROM tenant_use WHERE tenant = ?1`
	sqlLiveTenants = `SELECT tenant FROM tenant_use WHERE live > 0`
)

// The queue. What is asked of it is asked tenant by tenant, of those that have
// something waiting, and never reads a whole tenant's queue.
const (
	sqlWaitingTenants = `
WITH waiting (tenant) AS (
	SELECT tenant FROM tenant_use WHERE live > running AND tenant NOT IN (SELECT value FROM json_each(?2))
), first (tenant, id) AS MATERIALIZED (
	SELECT w.tenant, (SELECT q.id FROM live q WHERE q.node = '' AND q.tenant = w.tenant AND `
	sqlFairest = ` ORDER BY q.id LIMIT 1)
	FROM waiting w
)
SELECT f.id FROM first f LEFT JOIN tenants t ON t.tenant = f.tenant
WHERE f.id IS NOT NULL
ORDER BY (SELECT u.running FROM tenant_use u WHERE u.tenant = f.tenant), coalesce(t.served, 0), f.id LIMIT 1`
	sqlNext      = sqlWaitingTenants + `q.ready_at <= ?1` + sqlFairest
	sqlNextEarly = sqlWaitingTenants + `q.claim_until <= ?1` + sqlFairest

	sqlNextOverdue = `
SELECT id FROM live WHERE node = '' AND overdue_at > 0 AND overdue_at <= ?1 ORDER BY deadline, id LIMIT 1`
	sqlServe = `
INSERT INTO tenants (tenant, served) VALUES (?1, 1 + (SELECT coalesce(max(served), 0) FROM tenants))
ON CONFLICT (tenant) DO UPDATE SET served = excluded.served`
	sqlDue = `
SELECT
	(SELECT min((SELECT min(q.ready_at) FROM live q WHERE q.node = '' AND q.tenant = w.tenant)) FROM tenant_use w
		WHERE w.live > w.running AND w.tenant NOT IN (SELECT value FROM json_each(?1))),
	(SELECT min(overdue_at) FROM live WHERE node = '' AND overdue_at > 0),
	on_nodes, joins
FROM totals`
	sqlBacklog = `
SELECT count(*) FILTER (WHERE ready_at <= ?1), count(*) FILTER (WHERE claim_until <= ?1 AND not_before > ?1),
	count(*) FILTER (WHERE claim_until > ?1), min(created_at)
FROM live WHERE node = ''`
)

// Lists. Conditions and the order are added by listSQL.
const (
	sqlList       = `SELECT doc FROM records WHERE 1`
	sqlListTenant = ` AND tenant = ?1`
	sqlListNode   = ` AND node = ?2 AND node > ''`
	sqlListState  = ` AND state = ?3`
	sqlListBefore = ` AND id < ?4`
	sqlListLabels = ` AND NOT EXISTS (
	SELECT 1 FROM json_each(?5) q WHERE NOT EXISTS (
		SELECT 1 FROM json_each(doc, '$.request.labels') l WHERE l.key = q.key AND l.value = q.value))`
	sqlListOrder = ` ORDER BY id DESC LIMIT ?6`
)

// Keys, nodes, audit, tokens.
const (
	sqlKey     = `SELECT hash, expires, id FROM keys WHERE tenant = ?1 AND key = ?2`
	sqlPutKey  = `INSERT OR REPLACE INTO keys (tenant, key, hash, expires, id) VALUES (?1, ?2, ?3, ?4, ?5)`
	sqlEpoch   = `SELECT epoch FROM nodes WHERE id = ?1`
	sqlPutNode = `INSERT OR REPLACE INTO nodes (id, epoch, doc) VALUES (?1, ?2, ?3)`
	sqlNodeUse = `
SELECT n.id, n.epoch, n.doc, u.running, u.vcpus, u.memory_mib, u.disk_mib
FROM nodes n LEFT JOIN node_use u ON u.node = n.id`
	sqlNode  = sqlNodeUse + ` WHERE n.id = ?1`
	sqlNodes = sqlNodeUse + ` ORDER BY n.id`

	sqlAuditTail     = `SELECT seq, doc FROM audit ORDER BY seq DESC LIMIT 1`
	sqlInsertAudit   = `INSERT INTO audit (seq, tenant, doc) VALUES (?1, ?2, ?3)`
	sqlAudit         = `SELECT doc FROM audit WHERE seq > ?1 ORDER BY seq`
	sqlAuditOfTenant = `SELECT doc FROM audit WHERE seq > ?1 AND tenant = ?2 ORDER BY seq`
	sqlAuditRows     = `SELECT seq, tenant, doc FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2`

	sqlTokenClash  = `SELECT doc FROM tokens WHERE id = ?1 OR hash = ?2`
	sqlInsertToken = `INSERT INTO tokens (id, hash, tenant, created_at, doc) VALUES (?1, ?2, ?3, ?4, ?5)`
	sqlTokenByHash = `SELECT doc FROM tokens WHERE hash = ?1`
	sqlTokenByID   = `SELECT doc FROM tokens WHERE id = ?1`
	sqlUpdateToken = `UPDATE tokens SET doc = ?2 WHERE id = ?1`
	sqlTokens      = `SELECT doc FROM tokens WHERE ?1 = '' OR tenant = ?1 ORDER BY created_at, id`
)

// Policies. Whatever begins with ?1 is not after it followed by the largest
// character.
const (
	sqlPolicyColumns = `version, origin, seq, activated_at, replaced_at, length(CAST(text AS BLOB))`
	sqlActivePolicy  = `SELECT ` + sqlPolicyColumns + `, text FROM policies ORDER BY seq DESC LIMIT 1`
	sqlPolicy        = `SELECT ` + sqlPolicyColumns + `, text FROM policies WHERE version >= ?1 AND version <= ?1 || char(1114111) ORDER BY version LIMIT 2`
	sqlPolicies      = `SELECT ` + sqlPolicyColumns + ` FROM policies WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2`
	sqlReplacePolicy = `UPDATE policies SET replaced_at = ?2 WHERE version = ?1`
	sqlPutPolicy     = `
INSERT OR REPLACE INTO policies (version, text, origin, seq, activated_at, replaced_at) VALUES (?1, ?2, ?3, ?4, ?5, 0)`
	sqlPrunePolicies = `
DELETE FROM policies WHERE replaced_at > 0 AND replaced_at <= ?1
	AND NOT EXISTS (SELECT 1 FROM records WHERE policy = version AND policy > '')`
)

// Pruning, in parts of a bounded size.
const (
	sqlTooOld       = `SELECT id FROM records WHERE ended_at > 0 AND ended_at < ?1 ORDER BY ended_at LIMIT ?2`
	sqlTooMany      = `SELECT id FROM records WHERE ended_at > 0 ORDER BY ended_at DESC, id DESC LIMIT ?2 OFFSET ?1`
	sqlDeleteRecord = `DELETE FROM records WHERE id = ?1`
	sqlDeleteEvents = `DELETE FROM events WHERE id = ?1`
	sqlDeleteKeys   = `DELETE FROM keys WHERE expires <= ?1`
)
