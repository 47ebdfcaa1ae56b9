package main

import "github.com/prometheus/client_golang/prometheus"

var (
	descBackups     = describe("backups_total", "Backups of this router while it ran: made, or failed, which those are too that were cut off.", "result")
	descBackupLast  = describe("backup_last_timestamp_seconds", "When the last backup that was sent whole began, Unix seconds; also of one before this start.")
	descBackupBytes = describe("backup_last_bytes", "Bytes of the files in it.")
	descBackupTook  = describe("backup_last_seconds", "How long it took to send.")
)

// collectBackups sends of the last backup nothing where there never was one.
func (m *metrics) collectBackups(out chan<- prometheus.Metric) {
	if m.backups == nil {
		return
	}
	last, made, failed := m.backups()
	out <- prometheus.MustNewConstMetric(descBackups, prometheus.CounterValue, float64(made), "made")
	out <- prometheus.MustNewConstMetric(descBackups, prometheus.CounterValue, float64(failed), "failed")
	if last.Made.IsZero() {
		return
	}
	out <- prometheus.MustNewConstMetric(descBackupLast, prometheus.GaugeValue, float64(last.Made.UnixNano())/1e9)
	out <- prometheus.MustNewConstMetric(descBackupBytes, prometheus.GaugeValue, float64(last.Bytes))
	out <- prometheus.MustNewConstMetric(descBackupTook, prometheus.GaugeValue, last.Ended.Sub(last.Made).Seconds())
}
