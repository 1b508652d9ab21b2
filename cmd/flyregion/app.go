package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/flyregion/flyregion"
	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

const (
	createSQL = `create table messages (id bigserial primary key, body text not null);
insert into messages (body) values ('the first message')`
	writeSQL = `insert into messages (body) values ($1) returning id`
	readSQL  = `select body from messages where id = $1`
)

// app is what runs in one region.
type app struct {
	region  string
	pool    *flyregion.Pool
	queries *queryTracer

	// central is the plain way, for comparison: every query goes to the primary.
	central *pgxpool.Pool
}

// openApp opens the pools of the app in a region.
func openApp(ctx context.Context, cluster *pgcluster.Cluster, region string) (*app, error) {
	site := cluster.From(region)
	servers, err := addresses(ctx, cluster, site)
	if err != nil {
		return nil, err
	}
	a := &app{region: region, queries: &queryTracer{regions: servers}}

	// On Fly all of this is
	//
	//	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	//
	// because there the regions are in the environment (FLY_REGION, PRIMARY_REGION) and the names in the DNS. Here three
	// apps share one environment, so that the regions stand in the URL, and the network is the cluster's.
	config, err := flyregion.ParseConfig(cluster.URL() + "&fly_region=" + region + "&fly_primary_region=" + primaryRegion)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
	config.ConnConfig.Tracer = a.queries
	if a.pool, err = flyregion.NewPoolWithConfig(ctx, config); err != nil {
		return nil, err
	}

	central, err := pgxpool.ParseConfig(cluster.URL())
	if err == nil {
		central.ConnConfig.Host = primaryRegion + "." + central.ConnConfig.Host
		central.ConnConfig.LookupFunc, central.ConnConfig.DialFunc = site.LookupHost, site.DialContext
		central.ConnConfig.Tracer = &queryTracer{regions: servers}
		a.central, err = pgxpool.NewWithConfig(ctx, central)
	}
	if err != nil {
		a.pool.Close()
		return nil, err
	}
	return a, nil
}

// addresses returns the regions of the cluster's servers by their addresses.
func addresses(ctx context.Context, cluster *pgcluster.Cluster, site *pgcluster.Site) (map[netip.Addr]string, error) {
	config, err := pgx.ParseConfig(cluster.URL())
	if err != nil {
		return nil, err
	}
	regions := map[netip.Addr]string{}
	for _, s := range cluster.Servers() {
		ips, err := site.LookupHost(ctx, s.Region()+"."+config.Host)
		if err != nil {
			return nil, err
		}
		for _, ip := range ips {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return nil, err
			}
			regions[addr] = s.Region()
		}
	}
	return regions, nil
}

func (a *app) close() {
	a.pool.Close()
	a.central.Close()
}

// each runs a step for all apps at the same time.
func each(apps []*app, step func(i int, a *app) error) error {
	errs := make([]error, len(apps))
	var wg sync.WaitGroup
	for i, a := range apps {
		wg.Go(func() { errs[i] = step(i, a) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// warmUp opens the connections and prepares the statements that the demo uses, as an app that runs has done long ago.
func (a *app) warmUp(ctx context.Context) error {
	ctx, span := a.span(ctx, "warm-up")
	defer span.End()

	if err := a.read(ctx, a.central); err != nil {
		return err
	}
	if _, err := a.writeThenRead(ctx); err != nil {
		return err
	}
	// A read goes to the primary when the replica lags. The demo shows that without the cost of a first use.
	return a.read(flyregion.WithPrimary(ctx), a.pool)
}

// span begins a span of the app's own.
func (a *app) span(ctx context.Context, name string) (context.Context, trace.Span) {
	return tracer().Start(ctx, name, trace.WithAttributes(attribute.String(attrApp, "app in "+a.region)))
}

// querier is a *flyregion.Pool or a *pgxpool.Pool: to the code that uses them they are the same.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// read reads the first message.
func (a *app) read(ctx context.Context, db querier) error {
	var body string
	return db.QueryRow(ctx, readSQL, 1).Scan(&body)
}

// errStale is a read that missed a write of its own app.
var errStale = errors.New("a read missed the write before it")

// writeThenRead writes a message and reads it back at once. It returns the id of the message.
func (a *app) writeThenRead(ctx context.Context) (id int64, err error) {
	written := "written in " + a.region
	if err := a.pool.QueryRow(ctx, writeSQL, written).Scan(&id); err != nil {
		return 0, err
	}
	return id, a.find(ctx, id, written)
}

// find reads a message back.
func (a *app) find(ctx context.Context, id int64, written string) error {
	var body string
	err := a.pool.QueryRow(ctx, readSQL, id).Scan(&body)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && body != written {
		return fmt.Errorf("%w: message %d, app in %s", errStale, id, a.region)
	}
	return err
}
