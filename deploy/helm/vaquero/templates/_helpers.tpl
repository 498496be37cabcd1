{{- define "vaquero.settings" }}
            - name: VAQUERO_LISTEN
              value: "0.0.0.0:{{ .Values.api.port }}"
            - name: VAQUERO_DATA_DIR
              value: /var/lib/vaquero
            - name: VAQUERO_LOG_FORMAT
              value: json
            - name: VAQUERO_DATABASE_URL
              valueFrom: { secretKeyRef: { name: {{ .Values.secret | quote }}, key: database-url } }
            - name: VAQUERO_API_KEY
              valueFrom: { secretKeyRef: { name: {{ .Values.secret | quote }}, key: api-key } }
            - name: VAQUERO_ANTHROPIC_API_KEY
              valueFrom: { secretKeyRef: { name: {{ .Values.secret | quote }}, key: anthropic-api-key, optional: true } }
{{- if .Values.blobUrl }}
            - name: VAQUERO_BLOB_URL
              value: {{ .Values.blobUrl | quote }}
{{- end }}
{{- if .Values.blobSecret }}
            - name: AWS_ACCESS_KEY_ID
              valueFrom: { secretKeyRef: { name: {{ .Values.blobSecret | quote }}, key: access-key-id } }
            - name: AWS_SECRET_ACCESS_KEY
              valueFrom: { secretKeyRef: { name: {{ .Values.blobSecret | quote }}, key: secret-access-key } }
{{- end }}
{{- range $name, $value := .Values.settings }}
            - name: {{ $name }}
              value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "vaquero.probes" }}
          startupProbe: { httpGet: { path: /health, port: http }, periodSeconds: 1, failureThreshold: 60 }
          readinessProbe: { httpGet: { path: /health, port: http }, periodSeconds: 3 }
          livenessProbe: { tcpSocket: { port: http }, periodSeconds: 10, failureThreshold: 6 }
{{- end }}
