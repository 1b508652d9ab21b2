package flyregion

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// eagerProvider reads all gauges as soon as they have a callback.
type eagerProvider struct {
	metric.MeterProvider
	reader sdkmetric.Reader
}

func (p eagerProvider) Meter(name string, options ...metric.MeterOption) metric.Meter {
	return eagerMeter{p.MeterProvider.Meter(name, options...), p.reader}
}

type eagerMeter struct {
	metric.Meter
	reader sdkmetric.Reader
}

func (m eagerMeter) RegisterCallback(f metric.Callback, gauges ...metric.Observable) (metric.Registration, error) {
	registration, err := m.Meter.RegisterCallback(f, gauges...)
	if err == nil {
		err = m.reader.Collect(context.Background(), &metricdata.ResourceMetrics{})
	}
	return registration, err
}

// TestLagIsReadWhilePoolIsMade has a collector read the lag gauges as soon as it can.
func TestLagIsReadWhilePoolIsMade(t *testing.T) {
	cluster := sharedCluster(t)
	reader := sdkmetric.NewManualReader()
	provider := eagerProvider{sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)), reader}
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.Telemetry.MeterProvider = provider })
	awaitReplica(t, t.Context(), pool)
}
