{{- define "terrace.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "terrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "terrace.labels" -}}
{{ include "terrace.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
{{- end -}}

{{- define "terrace.port" -}}
{{- add 8000 .Values.level -}}
{{- end -}}

{{- define "terrace.instances" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled -}}
{{- end -}}

{{- define "terrace.scheme" -}}
{{- ternary "HTTPS" "HTTP" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{/* The settings that follow from other values; those of `settings` win. */}}
{{- define "terrace.settings" -}}
stores:
  mode: servers
log:
  format: json
server:
  drain_delay_ms: {{ mul 1000 .Values.drain.delaySeconds }}
  drain_timeout_ms: {{ mul 1000 .Values.drain.timeoutSeconds }}
limits:
  instances: {{ include "terrace.instances" . }}
{{- if .Values.metrics.enabled }}
metrics:
  enabled: "true"
  port: {{ .Values.metrics.port }}
{{- end }}
{{- if .Values.tls.existingSecret }}
tls:
  certificate: /etc/terrace/tls/tls.crt
  key: /etc/terrace/tls/tls.key
{{- end }}
{{- end -}}

{{/* As variables: TERRACE_<SECTION>_<KEY>; lists with spaces between. */}}
{{- define "terrace.variables" -}}
{{- $settings := mustMergeOverwrite (include "terrace.settings" . | fromYaml) (deepCopy .Values.settings) -}}
{{- range $section, $keys := $settings }}
{{- range $key, $value := $keys }}
TERRACE_{{ upper $section }}_{{ upper $key }}: {{ if kindIs "slice" $value }}{{ join " " $value | quote }}{{ else if kindIs "float64" $value }}{{ $value | int64 | quote }}{{ else }}{{ $value | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}
