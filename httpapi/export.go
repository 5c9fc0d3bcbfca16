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
		method: "GET", path: "/v1/exports", name: "exportAccounts", scope: scopeAccountsRead, status: 200, text: "Streams all accounts as they are at one log position, which Ledger-Position returns, and Ledger-Cursor as a cursor of the feed. A client that follows the feed or a webhook from that position receives every later change, and none that the export already contains. " +
			"The server stores nothing. A response that ends with a broken connection is incomplete. Erased accounts have an erasedTime and no personal data. Internal fields are included only for callers with the scope accounts:admin. At most two exports run at the same time.",
		summary: "Export accounts",
		codes:   codes(onQuery, []domain.Code{codeTooManyJobs, domain.CodeInvalidCursor}),
		raw:     s.exportAccounts, media: []string{exportTypes[export.NDJSON], exportTypes[export.CSV], exportTypes[export.Parquet]},
	}, func(context.Context, *call, *exportInput) (*answer, error) {
		panic("httpapi: exports answer through raw")
	})
	handle(s, route{
		method: "GET", path: "/v1/reconciliation", name: "reconcile", scope: scopeAccountsRead, status: 200, answer: reconciliation{},
		summary: "Get account counts and checksums",
		text: "Returns counts and checksums per shard at one log position, so that a target system can find where it differs. An account's shard is given by the first hexadecimal digits of the SHA-256 of its sub. " +
			"An account's checksum is the first 8 bytes, big-endian, of the SHA-256 of \"<sub>:<revision>\"; a shard's checksum is the sum of its accounts' checksums modulo 2^64, as 16 hexadecimal digits. Erased accounts are excluded.",
		codes: onQuery,
	}, s.reconcile)
	handle(s, route{
		method: "GET", path: "/v1/reconciliation/{shard}", name: "reconcileShard", scope: scopeAccountsRead, status: 200, answer: shardAccounts{},
		summary: "List the accounts of a shard",
		text:    "Returns the accounts of a shard at one log position, sorted by sub, with their revision and position. Accounts whose position is greater than the one the target system has reached are newer, not wrong.",
		codes:   onQuery,
	}, s.reconcileShard)
}

// exportTypes are the media types of the formats.
var exportTypes = map[export.Format]string{export.NDJSON: "application/x-ndjson", export.CSV: "text/csv", export.Parquet: "application/vnd.apache.parquet"}

// exportInput describes the parameters for OpenAPI; exportAccounts parses them itself.
type exportInput struct {
	Query
	Format string `query:"format" enum:"ndjson,csv,parquet" default:"ndjson" doc:"ndjson: one JSON document per line; csv: RFC 4180 with a header; parquet: the columns of csv with types, and the log position in the metadata."`
	Since  int64  `query:"since" minimum:"0" doc:"Only accounts that changed after this log position, such as the Ledger-Position of an earlier export."`
	Fields string `query:"fields" maxLength:"1000" doc:"Only the sub and these columns, separated by commas. In ndjson they become the members of each line." example:"email,given_name,revision"`
}

// maxExports is how many exports may run at once: each holds a database
// connection, and the views' write-ahead log grows while it runs.
const maxExports = 2

// exportAccounts streams the export at the client's pace and writes nothing to
// disk. It returns an error only before the response has begun; later errors
// cut the connection, so that the client notices.
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
			faults = append(faults, fault{Parameter: "fields", Detail: "must be columns of the csv format, such as sub, email, userStatus or revision"})
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
		return invalidParameters(faults...)
	}
	if _, err := s.fresh(ctx, fresh); err != nil {
		return err
	}
	if head, err := s.Log.Head(ctx); err != nil || o.Since > head {
		if err != nil {
			return err
		}
		return newProblem(domain.CodeInvalidCursor, "The position is beyond the end of the log, which is at position %d.", head)
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
		return newProblem(codeTooManyJobs, "Too many exports are running; retry later.").with("Retry-After", "10")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.Closing, cancel)()
	begun := false
	o.Begun = func(at eventstore.Position, _ int64) error {
		cursor, err := s.cursor(ctx, place{position: at})
		if err != nil {
			return err
		}
		begun = true
		header := c.w.Header()
		header.Set("Content-Type", exportTypes[o.Format])
		header.Set("Ledger-Position", strconv.FormatInt(int64(at), 10))
		header.Set("Ledger-Cursor", cursor)
		header.Set("Ledger-Lag", strconv.FormatInt(s.Views.Accounts().Lag(), 10))
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err = export.Accounts(ctx, s.Views, deadlined{http.NewResponseController(c.w), c.w}, o)
	if err == nil || !begun {
		return err
	}
	s.Logger.WarnContext(ctx, "export failed", "err", err, "request", c.id)
	panic(http.ErrAbortHandler) // otherwise the truncated export would look complete
}

type reconcileInput struct {
	Query
	Digits int `query:"digits" minimum:"1" maximum:"3" default:"2" doc:"Length of the shard names: 1 digit for 16 shards, 2 for 256, 3 for 4096."`
}

// reconciliation summarizes the ledger's accounts for comparison.
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
	Shard string `path:"shard" doc:"The shard's name: one to four lower-case hexadecimal digits." example:"7f"`
}

// shardAccounts lists the accounts of a shard.
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
		return nil, invalidParameters(fault{Parameter: "shard", Detail: "must be one to four lower-case hexadecimal digits"})
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
