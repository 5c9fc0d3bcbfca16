package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
	"accountledger/projections/export"
)

func (s *server) exportRoutes() {
	handle(s, route{
		method: "GET", path: "/v1/exports", name: "exportAccounts", scope: scopeAccountsRead, status: 200, text: "Streams all accounts, as they are at one position of the log, which Ledger-Position names: who follows the feed or a webhook from there gets every later change, and none twice. " +
			"Nothing is kept on the server. An answer that breaks off instead of ending is a part. Erased accounts have no personal data and an erasedTime. Internal fields are for callers with accounts:admin only. Two exports may run at a time.",
		summary: "Export accounts",
		codes:   codes(onQuery, []domain.Code{codeTooManyJobs, domain.CodeInvalidCursor}),
		raw:     s.exportAccounts, media: []string{exportTypes[export.NDJSON], exportTypes[export.CSV], exportTypes[export.Parquet]},
	}, func(context.Context, *call, *exportInput) (*answer, error) {
		panic("httpapi: exports answer themselves")
	})
	handle(s, route{
		method: "GET", path: "/v1/reconciliation", name: "reconcile", scope: scopeAccountsRead, status: 200, answer: reconciliation{},
		summary: "Count and add up accounts",
		text: "Counts and checksums by shard, at one position, so that a target system finds where it differs. The shard of an account is the first hexadecimal digits of the SHA-256 of its sub. " +
			"The checksum of an account is the first 8 bytes, big-endian, of the SHA-256 of \"<sub>:<revision>\"; that of a shard is their sum modulo 2^64, as 16 hexadecimal digits. Erased accounts do not count.",
		codes: onQuery,
	}, s.reconcile)
	handle(s, route{
		method: "GET", path: "/v1/reconciliation/{shard}", name: "reconcileShard", scope: scopeAccountsRead, status: 200, answer: shardAccounts{},
		summary: "List the accounts of a shard",
		text:    "By sub, with revision and position, as they are at one position. Accounts whose position is after what the target system has taken are ahead of it and not amiss.",
		codes:   onQuery,
	}, s.reconcileShard)
}

// exportTypes are the media types of the formats.
var exportTypes = map[export.Format]string{export.NDJSON: "application/x-ndjson", export.CSV: "text/csv", export.Parquet: "application/vnd.apache.parquet"}

// exportInput describes the parameters; the handler reads them itself.
type exportInput struct {
	Query
	Format string `query:"format" enum:"ndjson,csv,parquet" default:"ndjson" doc:"ndjson, a document a line; csv, RFC 4180 with a header; parquet, the columns of csv with types, and the position in the metadata."`
	Since  int64  `query:"since" minimum:"0" doc:"Only accounts that changed after this position of the log: the Ledger-Position of an earlier export."`
	Fields string `query:"fields" maxLength:"1000" doc:"Only these columns, separated by commas, and the sub; a line of ndjson then has them as its members." example:"email,given_name,revision"`
}

// maxExports is how many exports may run at once: each holds a connection, and
// the views' write-ahead log grows as long as it takes.
const maxExports = 2

// exportAccounts streams: what is personal is never on the server's disk, and
// the client's pace is the pace. An error is returned before anything was
// answered; later the connection is cut, which a client sees.
func (s *server) exportAccounts(ctx context.Context, c *call) error {
	query := c.r.URL.Query()
	o := export.Options{Format: export.NDJSON}
	var faults []fault
	if format := query.Get("format"); format != "" {
		o.Format = export.Format(format)
	}
	if !slices.Contains(export.Formats, o.Format) {
		faults = append(faults, fault{Parameter: "format", Detail: "must be ndjson, csv or parquet"})
	}
	if fields := query.Get("fields"); fields != "" {
		o.Fields = strings.Split(fields, ",")
		if slices.ContainsFunc(o.Fields, func(name string) bool { return !slices.Contains(export.Columns, name) }) {
			faults = append(faults, fault{Parameter: "fields", Detail: "must be columns of csv: sub, email, userStatus, revision and others"})
		}
	}
	number := func(name string, otherwise, most int64) int64 {
		text := query.Get(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 || n > most {
			faults = append(faults, fault{Parameter: name, Detail: "must be a number from 0 to " + strconv.FormatInt(most, 10)})
		}
		return n
	}
	o.Since = eventstore.Position(number("since", 0, 1<<62))
	fresh := Query{MinPosition: number("min_position", 0, 1<<62), Wait: int(number("wait", 5, 30))}
	if len(faults) > 0 {
		p := newProblem(domain.CodeInvalidRequest, "A parameter breaks the rules listed.")
		p.Errors = faults
		return p
	}
	if _, err := s.fresh(ctx, fresh); err != nil {
		return err
	}
	if head, err := s.Log.Head(ctx); err != nil || o.Since > head {
		if err != nil {
			return err
		}
		return newProblem(domain.CodeInvalidCursor, "The position lies after the end of the log, which is at position %d.", head)
	}
	hidden, err := s.hidden(ctx, c)
	if err != nil {
		return err
	}
	o.Hidden = hidden
	select {
	case s.exports <- struct{}{}:
		defer func() { <-s.exports }()
	default:
		return newProblem(codeTooManyJobs, "As many exports are running as may at a time.").with("Retry-After", "10")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.Closing, cancel)()
	begun := false
	o.Begun = func(at eventstore.Position, _ int64) error {
		begun = true
		header := c.w.Header()
		header.Set("Content-Type", exportTypes[o.Format])
		header.Set("Ledger-Position", strconv.FormatInt(int64(at), 10))
		header.Set("Ledger-Lag", strconv.FormatInt(s.Views.Accounts().Lag(), 10))
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err = export.Accounts(ctx, s.Views, deadlined{http.NewResponseController(c.w), c.w}, o)
	if err == nil || !begun {
		return err
	}
	s.Logger.WarnContext(ctx, "export broke off", "err", err, "request", c.id)
	panic(http.ErrAbortHandler) // or the part would look whole
}

type reconcileInput struct {
	Query
	Digits int `query:"digits" minimum:"1" maximum:"3" default:"2" doc:"How finely accounts are divided: 1 digit makes 16 shards, 2 make 256, 3 make 4096."`
}

// reconciliation is what the ledger has, for others to compare.
type reconciliation struct {
	Position eventstore.Position `json:"position" doc:"The log position the sums refer to."`
	Accounts int64               `json:"accounts" doc:"Number of accounts that are not erased."`
	Checksum string              `json:"checksum" doc:"Sum of all accounts' checksums, modulo 2^64."`
	Shards   []shardSum          `json:"shards" doc:"The shards that contain accounts, sorted by name."`
}

type shardSum struct {
	Shard    string `json:"shard" doc:"The shard's name: the first hexadecimal digits of the SHA-256 of its accounts' subs."`
	Accounts int64  `json:"accounts" doc:"Number of accounts in the shard."`
	Checksum string `json:"checksum" doc:"Sum of their checksums, modulo 2^64."`
}

func (s *server) reconcile(ctx context.Context, _ *call, in *reconcileInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	at, all, shards, err := export.Sums(ctx, s.Views, in.Digits)
	if err != nil {
		return nil, err
	}
	r := reconciliation{Position: at, Accounts: all.Accounts, Checksum: all.Checksum(), Shards: []shardSum{}}
	for shard, sum := range shards {
		r.Shards = append(r.Shards, shardSum{shard, sum.Accounts, sum.Checksum()})
	}
	slices.SortFunc(r.Shards, func(a, b shardSum) int { return strings.Compare(a.Shard, b.Shard) })
	a.LedgerPosition = strconv.FormatInt(int64(at), 10)
	return a.rendered(r)
}

type reconcileShardInput struct {
	Query
	Shard string `path:"shard" doc:"One to four hexadecimal digits." example:"7f"`
}

// shardAccounts is a shard, account by account.
type shardAccounts struct {
	Position eventstore.Position `json:"position" doc:"The log position the list refers to."`
	Shard    string              `json:"shard" doc:"The shard."`
	Accounts []shardAccount      `json:"accounts" doc:"The accounts that are not erased, sorted by sub."`
}

type shardAccount struct {
	Sub      string              `json:"sub" doc:"The account."`
	Revision eventstore.Revision `json:"revision" doc:"The account's revision."`
	Position eventstore.Position `json:"position" doc:"The log position of the account's last event."`
}

func (s *server) reconcileShard(ctx context.Context, _ *call, in *reconcileShardInput) (*answer, error) {
	if !export.IsShard(in.Shard) {
		p := newProblem(domain.CodeInvalidRequest, "A parameter breaks the rules listed.")
		p.Errors = []fault{{Parameter: "shard", Detail: "must be one to four hexadecimal digits, in lower case"}}
		return nil, p
	}
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	r := shardAccounts{Shard: in.Shard, Accounts: []shardAccount{}}
	r.Position, err = export.InShard(ctx, s.Views, in.Shard, func(row projections.AccountRow) {
		r.Accounts = append(r.Accounts, shardAccount{row.Sub, row.Revision, row.Position})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(r.Accounts, func(a, b shardAccount) int { return strings.Compare(a.Sub, b.Sub) })
	a.LedgerPosition = strconv.FormatInt(int64(r.Position), 10)
	return a.rendered(r)
}
